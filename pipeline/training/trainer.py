"""Forward pass, backward pass and optimizer step, with a state that can be saved and loaded between any two steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.inference import disable_malloc_trim
from pipeline.model.predictor import resolve_device
from pipeline.training.data.loader import Batch
from pipeline.training.losses.loss import Loss
from pipeline.training.optimizer import make_optimizer, rate_factor, resolve_autocast_dtype
from pipeline.training.settings.learning import OptimizationSpec


class Trainer:
    """Forward, backward and optimizer step on one device.

    A step depends only on the saved state, the batch, the seed and the step's number: the learning rate is a
    function of the number, and dropout is seeded by it. So a continued run takes the same steps.
    """

    def __init__(self, network: nn.Module, loss: Loss, spec: OptimizationSpec, *, batches: int, seed: int) -> None:
        """Train `network` (on the CPU, float32) in place; `batches` per epoch, `seed` of dropout."""
        self.spec, self.batches, self.seed = spec, batches, seed
        self.device = resolve_device(spec.device, key="learning.device")
        if self.device.type == "cpu":
            disable_malloc_trim()
        self.precision = resolve_autocast_dtype(spec.precision, self.device)
        self.network: nn.Module = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = EMA(self.network, spec.ema_decay) if spec.ema_decay else None
        # Optimizer steps per epoch; the last may have fewer batches.
        self._steps = -(-batches // spec.accumulate)
        self._loss = loss
        self._optimizer = make_optimizer(self.network.parameters(), spec)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    @property
    def checkpoint_network(self) -> nn.Module:
        """The network that is validated and saved: the moving average when `ema_decay` is set."""
        return self.network if self.average is None else self.average.network

    def is_between_steps(self, batch: int) -> bool:
        """Whether an optimizer step follows the first `batch` batches of an epoch; only then is the state complete."""
        return batch == self.batches or batch % self.spec.accumulate == 0

    def step(self, batch: Batch, *, epoch: int, index: int, scores: Sequence[float] = ()) -> float:
        """Train on one batch and return its loss; when that is not finite, the weights stay unchanged.

        The optimizer steps after every `accumulate` batches, and after the epoch's last. `epoch` counts from 1, `index`
        is the batch's number in the epoch, from 0, and `scores` are those of `rate_factor`.
        """
        # Seeded per batch, so that a resumed run draws the same dropout.
        torch.manual_seed(_dropout_seed(self.seed, epoch, index))
        self.network.train()
        logits = self._forward(self.network, batch)
        loss = self._loss(logits, self._to_device(batch.target), self._to_device(batch.weight_mask))
        value = float(loss.detach())  # the only wait for the device
        if not math.isfinite(value):
            return value

        # The epoch's last group may be shorter: its gradient is the mean over the batches that it has.
        first = index - index % self.spec.accumulate
        accumulated = min(self.spec.accumulate, self.batches - first)
        self._scaler.scale(loss / accumulated).backward()  # type: ignore[no-untyped-call]
        if index + 1 == first + accumulated:
            self._optimizer_step(self._step_index(epoch, index), self.learning_rate(epoch, index, scores))
        return value

    def learning_rate(self, epoch: int, index: int, scores: Sequence[float] = ()) -> float:
        """The learning rate of the optimizer step that batch `index` belongs to."""
        return self.spec.learning_rate * rate_factor(self._step_index(epoch, index), self._steps, self.spec, scores)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`(logits, target, weight_mask)` of `checkpoint_network`, each `(N, outputs, H, W)` on the device."""
        logits = self._forward(self.checkpoint_network.eval(), batch)
        return logits, self._to_device(batch.target), self._to_device(batch.weight_mask)

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite; a loss can be finite and its gradient infinite."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self.network.state_dict().values()]).all())

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as live tensors by name."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.network.state_dict().items()}
        for index, held in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in held.items() if value is not None}
        scaling = self._scaler.state_dict()
        return tensors | {f"scaler.{key}": torch.tensor(value, dtype=torch.float64) for key, value in scaling.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a `state_dict`; every tensor keeps its device and memory layout."""
        self.network.load_state_dict(_with_prefix(tensors, "network."))
        if self.average is not None:
            self.average.network.load_state_dict(_with_prefix(tensors, "average."))

        # Moments take device and layout of their weights; scalars such as `step` stay as saved.
        weights = list(self.network.parameters())
        for name, value in _with_prefix(tensors, "optimizer.").items():
            index, key = name.split(".")
            like = weights[int(index)]
            same = value.shape == like.shape
            self._optimizer.state[like][key] = torch.empty_like(like).copy_(value) if same else value
        if scaling := _with_prefix(tensors, "scaler."):
            # The scaler expects its own types, and all of them were saved as float64.
            kinds = {key: type(value) for key, value in self._scaler.state_dict().items()}
            self._scaler.load_state_dict({key: kinds[key](float(value)) for key, value in scaling.items()})

    def _forward(self, network: nn.Module, batch: Batch) -> Tensor:
        with self._autocast():
            logits: Tensor = network(self._to_device(batch.pixels))
        return logits.float()

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.precision == torch.float32 else torch.autocast(self.device.type, self.precision)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _step_index(self, epoch: int, index: int) -> int:
        """Optimizer steps before the one that batch `index` belongs to, over all epochs."""
        return (epoch - 1) * self._steps + index // self.spec.accumulate

    def _optimizer_step(self, number: int, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self.spec.clip_norm:
            # The norm is that of the true gradients, not of those scaled for float16.
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number + 1)


def _dropout_seed(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, 3, epoch, index]).generate_state(1)[0])


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class EMA:
    """Exponential moving average of the weights (Polyak & Juditsky 1992): `average = d * average + (1 - d) * weights`.

    Updated after each optimizer step. Early on the weights change fast, so the decay grows:
    `d = min(decay, (1 + t) / (10 + t))` at step `t` from 1, as `num_updates` of TensorFlow's
    ExponentialMovingAverage does. Means and variances of batch norm are averaged like weights, so they belong to
    about the same steps; integer buffers (the number of batches) are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay
        pairs = list(zip(_state(self.network), _state(network), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after optimizer step `step`, counted from 1 over the whole run."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([ours for ours, _ in self._averaged], [theirs for _, theirs in self._averaged], share)
        for ours, theirs in self._copied:
            ours.copy_(theirs)


def _state(network: nn.Module) -> list[Tensor]:
    """The live tensors of a network: parameters and buffers, in one order."""
    return list(network.state_dict(keep_vars=True).values())
