"""Transient errors are retried after the pauses of the policy; other errors are raised at once."""

from __future__ import annotations

import pytest

from pipeline.config import RunSpec
from pipeline.errors import ModelError, SceneError, SettingsError, TransientError
from pipeline.storage.retries import retry_transient


class Work:
    """Raises what it is given, one by one, and then returns how often it ran."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.runs = [*errors], 0

    def __call__(self) -> int:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.runs


def test_transient_errors_are_retried_after_doubling_pauses() -> None:
    slept: list[float] = []
    reported: list[float] = []
    work = Work(TransientError("503"), TransientError("timeout"))
    spec = RunSpec(retries=3, retry_delay_s=1.5)
    assert (
        retry_transient(work, spec.retry_policy, on_retry=lambda _, pause: reported.append(pause), sleep=slept.append)
        == 3
    )
    assert slept == reported == [1.5, 3.0]


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_last_error_is_raised_when_the_retries_are_used_up(retries: int) -> None:
    work = Work(*(TransientError(f"try {number}") for number in range(9)))
    with pytest.raises(TransientError, match=f"try {retries}"):
        retry_transient(work, RunSpec(retries=retries).retry_policy, sleep=lambda _: None)
    assert work.runs == retries + 1


@pytest.mark.parametrize("error", [SceneError("no CRS"), ModelError("no logits"), ZeroDivisionError()])
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    work = Work(error)
    with pytest.raises(type(error)):
        retry_transient(work, RunSpec().retry_policy, sleep=lambda _: pytest.fail("slept"))
    assert work.runs == 1


def test_pauses_double_up_to_a_limit_and_never_change() -> None:
    spec = RunSpec(retries=50)
    assert spec.retry_policy.pauses_s[:3] == (2.0, 4.0, 8.0)
    assert max(spec.retry_policy.pauses_s) == 300.0
    assert spec.retry_policy.pauses_s == RunSpec(retries=50).retry_policy.pauses_s
    assert RunSpec(retries=2, retry_delay_s=1000).retry_policy.pauses_s == (1000.0, 1000.0)
    assert RunSpec(retries=2, retry_delay_s=0).retry_policy.pauses_s == (0.0, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"retries": -1}, {"retries": 51}, {"retry_delay_s": -1}, {"retry_delay_s": float("nan")},
              {"max_failures": -1}], ids=str,
)  # fmt: skip
def test_impossible_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        RunSpec(**wrong)  # type: ignore[arg-type]
