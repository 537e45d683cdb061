"""The flow `segment-catalog`: one task per scene; one failing scene never stops the others.

python -m flows.segment SCENE... --model MODEL --out OUT        ad hoc, no server needed
prefect deployment run segment-catalog/nightly                   on a server, see prefect.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import App, Parameter
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ad_hoc import Overrides, run_once
from flows.artifacts import RunPage, show_summary
from flows.device_limits import device_turn
from flows.forms import form, reader
from flows.hooks import ON_END
from flows.in_hand import MOST_IN_HAND, run_scenes, shared_out
from flows.run_names import run_name
from flows.tasks import load_model, merge_all, plainly, segment_one, world_faults_retried
from pipeline.catalog import read_catalog
from pipeline.config import SegmentSpec
from pipeline.errors import ScenemillError
from pipeline.report import SceneReport, exit_code
from pipeline.run import open_run

SOURCES = "Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), STAC (.json, stac+), s3:// and https://."
SegmentForm = Annotated[SegmentSpec, reader(SegmentSpec), form(SegmentSpec)]
DEFAULTS = SegmentSpec()


class ScenesFailedError(ScenemillError):
    """Some scenes of a run failed; the others are complete, unless the run was stopped before."""

    def __init__(self, message: str, reports: Sequence[SceneReport] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)
        """A report for every scene of the run, in order."""


@flow(
    name="segment-catalog",
    flow_run_name=run_name("scenes"),
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=MOST_IN_HAND)),
    validate_parameters=True,
    **ON_END,
)
@plainly
def segment_catalog(
    scenes: list[str],
    model: str | list[str],
    out: str,
    settings: SegmentForm = DEFAULTS,
    device: str | None = None,
    max_failures: int | None = None,
    retry_quarantined: bool | None = None,
) -> list[SceneReport]:
    """Segment scenes into `out/<scene id>/`.

    Two scenes are in hand at once, so that one is vectorized while the next is inferred; a device
    runs one at a time. A cluster has one more in hand than it has workers.

    Args:
        scenes: files, folders, globs, lists, tables and STAC, or `s3://` and `https://` addresses.
        model: checkpoint, or several whose probabilities are averaged.
        out: folder of the results.
        settings: as in a settings file, e.g. `{"tiling": {"tile_size": 256}}`.
        device: overrides `inference.device`.
        max_failures: overrides `run.max_failures`: so many failed scenes end the run.
        retry_quarantined: overrides `run.retry_quarantined`: scenes in quarantine are tried again.

    Returns:
        A report for every scene, in order.

    Raises:
        ScenesFailedError: with the same reports, when every scene has had its turn and some failed.
        SettingsError: before any scene.
        ModelError: before any scene, when the checkpoint cannot be loaded.
    """
    spec = overridden(settings, device=device, max_failures=max_failures, retry_quarantined=retry_quarantined)
    entries = [*read_catalog(scenes, spec.catalog, spec.reading, area=spec.area)]
    with device_turn(spec.inference.device, scheduler=spec.distribute.scheduler):
        predictor = load_model(model, spec)
        one = segment_one.with_options(**world_faults_retried(spec.run))
        with open_run(entries, out, predictor=predictor, spec=spec) as (ledger, running):
            most, cut = shared_out(running, len(entries))
            page = RunPage(len(entries))
            run_scenes(ledger, entries, lambda entry: one.submit(entry, model, out, cut), page.settled, most=most)
    if spec.merge.into is not None:
        merge_all.with_options(**world_faults_retried(spec.run))(out, spec.merge, spec.run.work_dir)
    # Prefect takes a returned State for the run's own, and what it holds for the result.
    return cast("list[SceneReport]", summarise(ledger.reports, out))


def overridden(
    spec: SegmentSpec, *, device: str | None, max_failures: int | None, retry_quarantined: bool | None
) -> SegmentSpec:
    """Settings with what was given beside them, which is stronger."""
    run = replace(
        spec.run,
        max_failures=spec.run.max_failures if max_failures is None else max_failures,
        retry_quarantined=spec.run.retry_quarantined if retry_quarantined is None else retry_quarantined,
    )
    return replace(spec, run=run, inference=replace(spec.inference, device=device or spec.inference.device))


def summarise(reports: Sequence[SceneReport], out: str) -> State[Any]:
    """Show the summary, and settle the run's final state."""
    show_summary(reports, out)
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        reasons = "; ".join(f"{report.scene}: {report.reason}" for report in failed)
        message = f"{len(failed)} of {len(reports)} scenes failed{_count(reports, 'not run')}: {reasons}"
        return Failed(message=message, data=ScenesFailedError(message, reports))
    return Completed(message=f"{len(reports)} scenes{_count(reports, 'quarantined')}", data=[*reports])


def _count(reports: Sequence[SceneReport], status: str) -> str:
    """`, 3 not run`, or nothing where none is."""
    count = sum(report.status == status for report in reports)
    return f", {count} {status}" if count else ""


app = App(name="python -m flows.segment", help="Run the flow segment-catalog once, with or without a Prefect server.")


@app.default
def _run_once(
    *scenes: Annotated[str, Parameter(help=SOURCES)],
    model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
    out: Annotated[str, Parameter(help="Where the results go, a folder for each scene.")],
    config: Annotated[Path | None, Parameter(help="YAML file of settings; see docs/configuration.md.")] = None,
    overrides: Overrides = (),
    max_failures: Annotated[int | None, Parameter(help="End the run when so many scenes have failed.")] = None,
    retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
) -> int:
    """Exit code 0: all done; 1: something failed, the log says what; 2: wrong usage or settings; 3: see quarantine."""
    given = [*scenes], [*map(str, model)], out

    def start(settings: SegmentSpec) -> State[Any]:
        return segment_catalog(
            *given,
            settings,
            max_failures=max_failures,
            retry_quarantined=retry_quarantined or None,
            return_state=True,
        )

    return run_once(app, start, SegmentSpec, config, overrides, code=exit_code)


if __name__ == "__main__":
    app()
