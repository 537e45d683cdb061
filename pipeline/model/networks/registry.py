"""Registry of networks: chosen by name, built from bands and classes.

Each has a frozen spec, its shape, with the input sizes it takes and its receptive field, and a module that is
built from the shape and has it as `.spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from torch import nn

from pipeline.errors import ModelError, SettingsError
from pipeline.model.networks.deeplab import DeepLabSpec, DeepLabV3Plus
from pipeline.model.networks.fcn import FCN8s, FCNSpec
from pipeline.model.networks.layers import Norm
from pipeline.model.networks.resnet import Backbone, OutputStride
from pipeline.model.networks.unet import Padding, UNet, UNetSpec, Upsampling
from pipeline.text import quoted

NetworkName = Literal["unet", "fcn8s", "deeplabv3plus"]
Shape: TypeAlias = UNetSpec | FCNSpec | DeepLabSpec
Network: TypeAlias = UNet | FCN8s | DeepLabV3Plus

SHAPES: Mapping[str, type[UNetSpec] | type[FCNSpec] | type[DeepLabSpec]] = MappingProxyType(
    {"unet": UNetSpec, "fcn8s": FCNSpec, "deeplabv3plus": DeepLabSpec}
)
"""The spec of each network, by the name that settings and checkpoints know it by."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """The network to train; bands and classes come from the data."""

    name: NetworkName = "unet"
    """`unet` and its relatives, `fcn8s`, or `deeplabv3plus`."""
    base_channels: int = 32
    """Channels of the first level, 8 to 128; all others follow from it. 64 is the papers' in all three."""
    norm: Norm = "batch"
    """Normalisation after each convolution; `group` rules out `blend: exact`."""
    dropout: float = 0.0
    """Share of the deepest activations dropped while training, 0 to 0.5."""
    depth: int = 4
    """U-Net: times the pixels are halved, 2 to 5."""
    padding: Padding = "same"
    """U-Net: `same`, or `valid` for the 2015 paper's unpadded convolutions."""
    upsampling: Upsampling = "transposed"
    """U-Net: `transposed` (the paper's), `bilinear`, or `convolution` (nearest, then 3x3)."""
    attention: bool = False
    """U-Net: attention gates on the skips."""
    residual: bool = False
    """U-Net: a shortcut around each block."""
    squeeze_excitation: bool = False
    """U-Net: channels reweighted in each block by their mean over the tile, which rules out `blend: exact`."""
    convolution_bias: bool = False
    """U-Net: keep biases that batch norm makes useless, to count parameters as other implementations do."""
    backbone: Backbone = "resnet50"
    """DeepLabV3+: the encoder, trained from scratch."""
    output_stride: OutputStride = 16
    """DeepLabV3+: input pixels per pixel of the deepest features, 8 or 16."""
    image_pooling: bool = True
    """DeepLabV3+: let the pyramid see the mean of the tile, which rules out `blend: exact`."""
    separable: bool = False
    """DeepLabV3+: split 3x3 convolutions of pyramid and decoder into depthwise and 1x1 ones."""

    def __post_init__(self) -> None:
        self.shape(bands=1, classes=1)

    def shape(self, *, bands: int, classes: int) -> Shape:
        """The full spec of the network for a number of bands and classes.

        Raises:
            SettingsError: for a value out of bounds, or a key of another network that is not at its default.
        """
        if self.name not in SHAPES:
            raise SettingsError(f"name must be one of {', '.join(SHAPES)}, not {self.name!r}")
        kind = SHAPES[self.name]
        own_keys = {each.name for each in fields(kind)}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in own_keys | {"name"} and value != each.default:
                raise SettingsError(
                    f"{each.name} = {value!r} has no meaning for {self.name}: it belongs to "
                    f"{' and '.join(_owners(each.name))}; leave it out or choose that network"
                )
        own: dict[str, Any] = {key: getattr(self, key) for key in own_keys - {"bands", "classes"}}
        return kind(bands=bands, classes=classes, **own)


def _owners(key: str) -> list[str]:
    return [name for name, kind in SHAPES.items() if key in {each.name for each in fields(kind)}]


def build_network(shape: Shape) -> Network:
    """A new network of a shape, with random weights from torch's generator, in training mode."""
    if isinstance(shape, UNetSpec):
        return UNet(shape)
    return FCN8s(shape) if isinstance(shape, FCNSpec) else DeepLabV3Plus(shape)


def as_network(module: nn.Module) -> Network:
    """The module itself; raises ModelError if it is none of the networks here."""
    if isinstance(module, Network):
        return module
    raise ModelError(
        f"only a network of pipeline.model.networks.registry ({', '.join(SHAPES)}) can be written as a checkpoint, "
        f"not {type(module).__name__}"
    )


def architecture_of(network: nn.Module) -> dict[str, object]:
    """Description of a network as plain JSON values: `name` and the fields of its spec.

    `network_from(architecture_of(network))` has the same parameters under the same names.
    """
    spec = as_network(network).spec
    return {"name": next(name for name, kind in SHAPES.items() if isinstance(spec, kind))} | asdict(spec)


def network_from(facts: Mapping[str, object]) -> Network:
    """Build the network that `architecture_of` described; missing keys get their defaults."""
    values: dict[str, Any] = dict(facts)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in SHAPES:
        raise ModelError(f"the network {quoted(name)} is not one of: {', '.join(SHAPES)}")
    try:
        return build_network(SHAPES[name](**values))
    except (TypeError, SettingsError) as error:
        raise ModelError(f"{name}: {error}") from error
