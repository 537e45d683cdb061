"""The flow `segment-catalog`: one task per scene; one failing scene never stops the others.

python -m flows.segment SCENE... --model MODEL --out OUT        ad hoc, no server needed
prefect deployment run segment-catalog/nightly                   on a server, see prefect.yaml
"""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import Annotated, Any, cast

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import RunPage
from flows.device_limits import device_turn
from flows.faults import plainly, world_faults_retried
from flows.forms import form, reader
from flows.hooks import ON_END
from flows.in_hand import MOST_IN_HAND, resolve_concurrency, run_scenes
from flows.model import load_model
from flows.run_names import run_name
from flows.segment_end import summarise
from flows.tasks import merge_all, segment_one
from pipeline.catalog import CatalogEntry, read_catalog
from pipeline.config import SegmentSpec
from pipeline.results import SceneReport
from pipeline.run import open_run

SegmentForm = Annotated[SegmentSpec, reader(SegmentSpec), form(SegmentSpec)]
DEFAULTS = SegmentSpec()


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
            most, cut = resolve_concurrency(running, len(entries))
            page = RunPage(len(entries))

            def begin(entry: CatalogEntry, stop: Event) -> PrefectFuture[SceneReport]:
                return one.submit(entry, model, out, cut, stop)

            run_scenes(ledger, entries, begin, page.settled, most=most)
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


if __name__ == "__main__":
    from flows.ad_hoc_segment import command

    command(segment_catalog)()
