"""The flow `segment-scenes`: one task per scene; one failing scene never stops the others.

python -m flows.segment SCENE... --model MODEL --out OUT        ad hoc, no server needed
prefect deployment run segment-scenes/nightly                    on a server, see prefect.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import App, Parameter
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ad_hoc import Overrides, run_once
from flows.tasks import load_model, plainly, segment_one
from pipeline.catalog import read_catalog
from pipeline.config import SegmentSpec, build_settings
from pipeline.errors import ScenemillError
from pipeline.report import SceneReport
from pipeline.run import check_out, check_settings, conclude, failed_report, on_devices

SOURCES = "Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), or s3:// and https:// addresses."


class ScenesFailedError(ScenemillError):
    """Some scenes of a run failed; the others are complete."""

    def __init__(self, message: str, reports: Sequence[SceneReport] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)
        """A report for every scene of the run, in order."""


@flow(
    name="segment-scenes",
    flow_run_name="segment-into-{out}",
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=2)),
    validate_parameters=True,
)
@plainly
def segment_scenes(
    scenes: list[str],
    model: str | list[str],
    out: str,
    settings: dict[str, Any] | None = None,
    device: str | None = None,
) -> list[SceneReport]:
    """Segment scenes into `out/<scene id>/`.

    Two scenes are in hand at once, so that one is vectorized while the next is inferred; a device
    runs one at a time.

    Args:
        scenes: files, folders, globs, lists and tables, or `s3://` and `https://` addresses.
        model: checkpoint, or several whose probabilities are averaged.
        out: folder of the results.
        settings: the sections of a settings file, e.g. `{"tiling": {"tile_size": 256}}`.
        device: overrides `inference.device`.

    Returns:
        A report for every scene, in order.

    Raises:
        ScenesFailedError: with the same reports, when every scene has had its turn and some failed.
        SettingsError: before any scene.
        ModelError: before any scene, when the checkpoint cannot be loaded.
    """
    spec = build_settings(SegmentSpec, _with_device(settings, device), place="flow parameter settings")
    entries = [*read_catalog(scenes, spec.catalog, spec.reading)]
    check_settings(spec, load_model(model, spec))
    check_out(Path(out))
    reports = []
    with on_devices(spec) as spec:
        futures = [segment_one.submit(entry, model, out, spec) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            future.wait()
            result = future.state.result(raise_on_failure=False)
            reports.append(result if isinstance(result, SceneReport) else failed_report(entry, result))
    # Prefect takes a returned State for the run's own, and what it holds for the result.
    return cast("list[SceneReport]", summarise(reports, Path(out)))


def summarise(reports: Sequence[SceneReport], out: Path) -> State[Any]:
    """Write `run.json`, the STAC Collection and the summary artifact, and settle the run's final state."""
    conclude(out, reports)
    create_table_artifact(key="segment-scenes", table=[_row(report) for report in reports], description=str(out))
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        reasons = "; ".join(f"{report.scene}: {report.reason}" for report in failed)
        message = f"{len(failed)} of {len(reports)} scenes failed: {reasons}"
        return Failed(message=message, data=ScenesFailedError(message, reports))
    return Completed(message=f"{len(reports)} scenes", data=[*reports])


def _with_device(settings: dict[str, Any] | None, device: str | None) -> dict[str, Any]:
    settings = dict(settings or {})
    return (
        settings if device is None else {**settings, "inference": {**settings.get("inference", {}), "device": device}}
    )


def _row(report: SceneReport) -> dict[str, Any]:
    return {
        "scene": report.scene,
        "status": report.status,
        "polygons": report.polygons,
        "area_m2": round(sum(report.area_m2.values()), 1),
        "megapixels": round(report.pixels / 1e6, 1),
        "seconds": round(sum(report.seconds.values()), 1),
        "folder": report.folder,
        "reason": report.reason or "",
    }


app = App(name="python -m flows.segment", help="Run the flow segment-scenes once, with or without a Prefect server.")


@app.default
def _run_once(
    *scenes: Annotated[str, Parameter(help=SOURCES)],
    model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
    out: Annotated[Path, Parameter(help="Folder for the results, one folder per scene.")],
    config: Annotated[Path | None, Parameter(help="YAML file of settings; see docs/configuration.md.")] = None,
    overrides: Overrides = (),
) -> int:
    """Exit code 0: all done; 1: something failed, the log says what; 2: wrong usage or settings."""
    given = [*scenes], [*map(str, model)], str(out)
    return run_once(
        app, lambda settings: segment_scenes(*given, settings, return_state=True), SegmentSpec, config, overrides
    )


if __name__ == "__main__":
    app()
