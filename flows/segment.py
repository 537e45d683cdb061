"""The flow `segment-catalog`: one task per scene; one failing scene never stops the others.

python -m flows.segment SCENE... --model MODEL --out OUT        ad hoc, no server needed
prefect deployment run segment-catalog/nightly                   on a server, see prefect.yaml
"""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import Annotated, cast

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import RunArtifacts
from flows.concurrency import resolve_concurrency, run_scenes
from flows.device_limits import hold_devices
from flows.hooks import ON_END
from flows.model_cache import load_model
from flows.parameter_schema import settings_schema, settings_validator
from flows.retries import fail_without_traceback, task_options
from flows.run_names import run_name
from flows.summaries import summarise_run
from flows.tasks import merge_all, segment_one
from pipeline.catalog import CatalogEntry, read_catalog
from pipeline.config import SegmentSpec
from pipeline.results import SceneReport
from pipeline.run import open_run

Settings = Annotated[SegmentSpec, settings_validator(SegmentSpec), settings_schema(SegmentSpec)]
DEFAULTS = SegmentSpec()


@flow(
    name="segment-catalog",
    flow_run_name=run_name("scenes"),
    validate_parameters=True,
    **ON_END,
)
@fail_without_traceback
def segment_catalog(
    scenes: list[str],
    model: str | list[str],
    out: str,
    settings: Settings = DEFAULTS,
    device: str | None = None,
    max_failures: int | None = None,
    retry_quarantined: bool | None = None,
) -> list[SceneReport]:
    """Segment scenes into `out/<scene id>/`.

    Two scenes run concurrently, so that one is vectorized while the next is inferred; a device
    infers one at a time. On a cluster there is one more scene than there are workers.

    Args:
        scenes: files, folders, globs, lists, tables and STAC, or `s3://` and `https://` addresses.
        model: checkpoint, or several whose probabilities are averaged.
        out: folder of the results.
        settings: as in a settings file, e.g. `{"tiling": {"tile_size": 256}}`.
        device: overrides `inference.device`.
        max_failures: overrides `run.max_failures`: this number of failed scenes ends the run.
        retry_quarantined: overrides `run.retry_quarantined`: scenes in quarantine are tried again.

    Returns:
        A report for every scene, in order.

    Raises:
        ScenesFailedError: with the same reports, after all scenes, when some failed.
        SettingsError: before any scene.
        ModelError: before any scene, when the checkpoint cannot be loaded.
    """
    spec = apply_overrides(settings, device=device, max_failures=max_failures, retry_quarantined=retry_quarantined)
    entries = [*read_catalog(scenes, spec.catalog, spec.reading, area=spec.area)]
    with hold_devices(spec.inference.device, scheduler=spec.distribute.scheduler):
        predictor = load_model(model, spec)
        task = segment_one.with_options(**task_options(spec.run))
        with open_run(entries, out, predictor=predictor, spec=spec) as (ledger, running):
            max_concurrent, scene_spec = resolve_concurrency(running, len(entries))
            artifacts = RunArtifacts(len(entries))

            # A runner of its own has one thread per concurrent scene: with more, each race between a thread that ends a
            # scene and the submission of the next starts another thread, which keeps its buffers to the end of the run.
            with ThreadPoolTaskRunner[SceneReport](max_workers=max_concurrent) as runner:

                def submit(entry: CatalogEntry, stop: Event) -> PrefectFuture[SceneReport]:
                    arguments = {"entry": entry, "model": model, "out": out, "spec": scene_spec, "stop": stop}
                    return runner.submit(task, arguments)

                run_scenes(ledger, entries, submit, artifacts.add, max_concurrent=max_concurrent)

    # The merge needs all results, but no device.
    if spec.merge.output is not None:
        merge_all.with_options(**task_options(spec.run))(out, spec.merge, spec.run.work_dir)
    # Prefect takes a returned State as the state of the run, and its data as the result.
    return cast("list[SceneReport]", summarise_run(ledger.reports, out))


def apply_overrides(
    spec: SegmentSpec, *, device: str | None, max_failures: int | None, retry_quarantined: bool | None
) -> SegmentSpec:
    """Settings overridden by the flow's own parameters; None keeps the setting."""
    run = replace(
        spec.run,
        max_failures=spec.run.max_failures if max_failures is None else max_failures,
        retry_quarantined=spec.run.retry_quarantined if retry_quarantined is None else retry_quarantined,
    )
    return replace(spec, run=run, inference=replace(spec.inference, device=device or spec.inference.device))


if __name__ == "__main__":
    from flows.command_line import segment_command

    segment_command(segment_catalog)()
