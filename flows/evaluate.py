"""The flow `evaluate-scenes`: one task per scene, then all of them together; one bad scene loses no other.

python -m flows.evaluate SCENE... --labels LABELS --out OUT --model MODEL     ad hoc, no server needed
prefect deployment run evaluate-scenes/ad-hoc                                  on a server, see prefect.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import App, Parameter
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.ad_hoc import Labels, Overrides, run_once
from flows.artifacts import unless_away
from flows.device_limits import device_turn
from flows.forms import form, reader
from flows.hooks import ON_END
from flows.run_names import run_name
from flows.tasks import evaluate_one, plainly
from pipeline.errors import ScenemillError
from pipeline.evaluation.evaluate import conclude, failed_evaluation
from pipeline.evaluation.plan import EvaluationPlan, find_label_files, load_plan_model, on_plan_devices, plan_evaluation
from pipeline.evaluation.records import EvaluateSpec, EvaluationReport, SceneEvaluation


class EvaluationFailedError(ScenemillError):
    """Some scenes could not be evaluated; the others are, and the page tells of all."""

    def __init__(self, message: str, report: EvaluationReport | None = None) -> None:
        super().__init__(message)
        self.report = report
        """The evaluation, failed scenes included."""


EvaluateForm = Annotated[EvaluateSpec, reader(EvaluateSpec), form(EvaluateSpec)]
DEFAULTS = EvaluateSpec()


@flow(
    name="evaluate-scenes",
    flow_run_name=run_name("scenes"),
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=2)),
    validate_parameters=True,
    **ON_END,
)
@plainly
def evaluate_scenes(
    scenes: list[str],
    labels: list[str],
    out: str,
    model: str | list[str] | None = None,
    mosaics: str | None = None,
    polygons: str | None = None,
    settings: EvaluateForm = DEFAULTS,
) -> EvaluationReport:
    """Compare a model, mosaics or polygons (exactly one) with labels; see `pipeline.evaluation.evaluate.evaluate`.

    Args:
        scenes: files, folders, globs, or addresses.
        labels: vector files or mask rasters, one for all scenes, or folders of them.
        out: folder of the evaluation.
        model: a checkpoint, or several whose probabilities are averaged.
        mosaics: the folder of a run, or one `probability.tif`.
        polygons: a vector file, or a folder of them, or the folder of a run.
        settings: as in an evaluation settings file, e.g. `{"bootstrap": {"block_size": 512}}`.

    Raises:
        EvaluationFailedError: with the report, when every scene has had its turn and some failed.
        SettingsError: before any scene; or the results differ in their classes.
        LabelError: before any scene, when there are no labels.
        ModelError: before any scene, when the checkpoint cannot be used.
    """
    plan = plan_evaluation(scenes, labels, out, model=model, mosaics=mosaics, polygons=polygons, spec=settings)
    done = []
    with _turn_of(plan), on_plan_devices(plan) as running:
        files, predictor = find_label_files(plan), load_plan_model(plan)
        futures = [evaluate_one.submit(running, entry, files, predictor) for entry in plan.entries]
        for entry, future in zip(plan.entries, futures, strict=True):
            future.wait()
            result = future.state.result(raise_on_failure=False)
            done.append(result if isinstance(result, SceneEvaluation) else failed_evaluation(entry, result))
    # Prefect takes a returned State for the run's own, and what it holds for the result.
    return cast("EvaluationReport", summarise(conclude(plan, done, files)))


def _turn_of(plan: EvaluationPlan) -> AbstractContextManager[None]:
    """The devices of the settings, where a model is run."""
    segment = plan.spec.segment
    runs = plan.kind == "model"
    return device_turn(segment.inference.device, scheduler=segment.distribute.scheduler) if runs else nullcontext()


def summarise(report: EvaluationReport) -> State[Any]:
    """Show the summary, and settle the run's final state."""
    page = Path(report.folder) / report.page
    with unless_away():
        create_table_artifact(key="evaluate-scenes", table=[*_rows(report)], description=str(page))
    if report.failed:
        reasons = "; ".join(f"{scene.scene}: {scene.reason}" for scene in report.failed)
        message = f"{len(report.failed)} of {len(report.scenes)} scenes could not be evaluated: {reasons}"
        return Failed(message=message, data=EvaluationFailedError(message, report))
    return Completed(message=f"{len(report.scenes)} scenes, {page}", data=report)


def _rows(report: EvaluationReport) -> Sequence[dict[str, Any]]:
    rows = [
        _row(scene.scene, scene.status, scene.scores and scene.scores.mean, scene.reason) for scene in report.scenes
    ]
    return [*rows, _row("all", "", report.overall and report.overall.mean, None)]


def _row(name: str, status: str, scores: Any, reason: str | None) -> dict[str, Any]:
    shown = {"IoU": "iou", "F1": "f1", "boundary IoU": "boundary_iou", "object F1": "object_f1"}
    values = {title: _text(scores[key]) if scores else "" for title, key in shown.items()}
    return {"scene": name, "status": status, **values, "reason": reason or ""}


def _text(estimate: Any) -> str:
    if estimate.value is None:
        return ""
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})")


app = App(name="python -m flows.evaluate", help="Run the flow evaluate-scenes once, with or without a Prefect server.")


@app.default
def _run_once(
    *scenes: Annotated[str, Parameter(help="Files, folders, globs, or s3:// and https:// addresses.")],
    labels: Labels,
    out: Annotated[Path, Parameter(help="Folder of the evaluation.")],
    model: Annotated[list[Path] | None, Parameter(help="Checkpoint to evaluate; several: the mean of all.")] = None,
    mosaics: Annotated[Path | None, Parameter(help="Folder of a run, or one probability.tif.")] = None,
    polygons: Annotated[Path | None, Parameter(help="Vector file, folder of them, or folder of a run.")] = None,
    config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/evaluate.yaml.")] = None,
    overrides: Overrides = (),
) -> int:
    """Exit code 0: all evaluated; 1: something failed, the log says what; 2: wrong usage or settings."""
    given = {name: str(path) for name, path in {"mosaics": mosaics, "polygons": polygons}.items() if path is not None}
    models = None if model is None else [*map(str, model)]

    def start(settings: EvaluateSpec) -> State[Any]:
        return evaluate_scenes([*scenes], labels, str(out), models, settings=settings, return_state=True, **given)

    return run_once(app, start, EvaluateSpec, config, overrides)


if __name__ == "__main__":
    app()
