"""The flow `evaluate-scenes`: one task per scene, then the scores of all; a failing scene never stops the others.

python -m flows.evaluate SCENE... --labels LABELS --out OUT --model MODEL     ad hoc, no server needed
prefect deployment run evaluate-scenes/ad-hoc                                  on a server, see prefect.yaml
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, cast

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.device_limits import hold_devices
from flows.hooks import ON_END
from flows.parameter_schema import settings_schema, settings_validator
from flows.retries import fail_without_traceback
from flows.run_names import run_name
from flows.summaries import summarise_evaluation
from flows.tasks import evaluate_one
from pipeline.evaluation import (
    EvaluateSpec,
    EvaluationPlan,
    EvaluationReport,
    EvaluationRequest,
    SceneEvaluation,
    aggregate,
    failed_evaluation,
    find_label_files,
    load_plan_model,
    on_plan_devices,
    plan_evaluation,
)

Settings = Annotated[EvaluateSpec, settings_validator(EvaluateSpec), settings_schema(EvaluateSpec)]
DEFAULTS = EvaluateSpec()


@flow(
    name="evaluate-scenes",
    flow_run_name=run_name("scenes"),
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=2)),
    validate_parameters=True,
    **ON_END,
)
@fail_without_traceback
def evaluate_scenes(
    scenes: list[str],
    labels: list[str],
    out: str,
    model: str | list[str] | None = None,
    mosaics: str | None = None,
    polygons: str | None = None,
    settings: Settings = DEFAULTS,
) -> EvaluationReport:
    """Compare a model, mosaics or polygons (exactly one) with labels; see `pipeline.evaluation.run.evaluate`.

    Args:
        scenes: files, folders, globs, or addresses.
        labels: vector files or mask rasters, one for all scenes, or folders of them.
        out: folder of the evaluation.
        model: a checkpoint, or several whose probabilities are averaged.
        mosaics: the folder of a run, or one `probability.tif`.
        polygons: a vector file, or a folder of them, or the folder of a run.
        settings: as in an evaluation settings file, e.g. `{"bootstrap": {"block_size": 512}}`.

    Raises:
        EvaluationFailedError: with the report, after all scenes, when some failed.
        SettingsError: before any scene; or the results differ in their classes.
        LabelError: before any scene, when there are no labels.
        ModelError: before any scene, when the checkpoint cannot be used.
    """
    request = EvaluationRequest(scenes, labels, out, model=model, mosaics=mosaics, polygons=polygons)
    plan = plan_evaluation(request, settings)
    done = []
    with _hold_devices_of(plan), on_plan_devices(plan) as running:
        files, predictor = find_label_files(plan), load_plan_model(plan)
        futures = [evaluate_one.submit(running, entry, files, predictor) for entry in plan.entries]
        for entry, future in zip(plan.entries, futures, strict=True):
            future.wait()
            result = future.state.result(raise_on_failure=False)
            done.append(result if isinstance(result, SceneEvaluation) else failed_evaluation(entry, result))
    # Prefect takes a returned State as the state of the run, and its data as the result.
    return cast("EvaluationReport", summarise_evaluation(aggregate(plan, done, files)))


def _hold_devices_of(plan: EvaluationPlan) -> AbstractContextManager[None]:
    """Hold the devices of the settings, if a model is run."""
    if plan.kind != "model":
        return nullcontext()
    segment = plan.spec.segment
    return hold_devices(segment.inference.device, scheduler=segment.distribute.scheduler)


if __name__ == "__main__":
    from flows.command_line import evaluate_command

    evaluate_command(evaluate_scenes)()
