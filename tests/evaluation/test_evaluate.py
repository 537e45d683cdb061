"""Evaluation: counts, scores, and the report and page of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.windows import Window
from support.labelled import ORIGIN, UTM, grid_of, place
from support.models import write_checkpoint, write_damaged

from pipeline.config import SegmentSpec
from pipeline.errors import SettingsError
from pipeline.evaluation.error_map import COLOURS, error_codes
from pipeline.evaluation.metrics import counts as counting
from pipeline.evaluation.metrics.boundary import score_boundary
from pipeline.evaluation.metrics.calibration import CalibrationSums, join_bins
from pipeline.evaluation.metrics.counts import BlockCounter, BlockCounts, PixelPlanes
from pipeline.evaluation.metrics.matching import score_object_curve
from pipeline.evaluation.metrics.objects import place_objects
from pipeline.evaluation.metrics.scores import OBJECT_RATIOS, PIXEL_RATIOS, score_counts
from pipeline.evaluation.page import render_page
from pipeline.evaluation.plan import EvaluationRequest
from pipeline.evaluation.records import METRICS, BootstrapSpec, ClassPlanes, EvaluateSpec, EvaluationReport
from pipeline.evaluation.run import evaluate
from pipeline.model.card import ModelCard
from pipeline.polygons.shaping import PolygonSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene
from pipeline.training.data.reservoir import LogitSample
from pipeline.training.validation.calibration import reliability
from pipeline.training.validation.metrics import Confusion

SIDE = 96
SPEC = EvaluateSpec(
    bootstrap=BootstrapSpec(block_size=32, resamples=100),
    worst_windows=2,
    segment=SegmentSpec(reading=ReadingSpec(threads=1)),
)
ROOF = ModelCard(bands=("red",), classes=("roof",))
SQUARES = [shapely.box(c, r, c + 10, r + 10) for r, c in ((5, 5), (40, 8), (70, 70), (20, 60), (80, 20))]
"""Five reference objects, `(col, row)`."""


def burn(shapes: list[shapely.Polygon], side: int = SIDE) -> NDArray[np.uint8]:
    return (
        np.asarray(rasterio.features.rasterize(shapes, out_shape=(side, side), dtype="uint8"))
        if shapes
        else np.zeros((side, side), np.uint8)
    )


class Case:
    """A scene, its labels as polygons and as a mask, and the folder of a run that segmented some squares in it."""

    def __init__(self, folder: Path, make_scene: MakeScene) -> None:
        self.folder, self.make_scene, self.run = folder, make_scene, folder / "run"
        self.polygons, self.masks = folder / "labels", folder / "masks"
        self.images: list[Path] = []
        for path in (self.polygons, self.masks):
            path.mkdir()

    def add(
        self, name: str, found: list[shapely.Polygon] = SQUARES, truth: list[shapely.Polygon] = SQUARES, **settings: Any
    ) -> Path:
        """A scene whose red band says what the run finds: 250 there, 20 elsewhere."""
        pixels = np.stack([np.where(burn(found), 250, 20), *np.full((2, SIDE, SIDE), 90)]).astype(np.uint8)
        image = self.make_scene(pixels, name=f"images/{name}.tif", crs=UTM, transform=ORIGIN)
        segment_scene(image, self.run, predictor=lambda x: x / 255, card=ROOF, spec=SegmentSpec(**settings))
        self.make_scene(burn(truth), name=f"masks/{name}.tif", crs=UTM, transform=ORIGIN)
        self.label(name, truth)
        self.images.append(image)
        return image

    def label(self, name: str, truth: list[shapely.Polygon]) -> None:
        frame = geopandas.GeoDataFrame({"kind": ["roof"] * len(truth)}, geometry=place(truth), crs=UTM)
        frame.to_crs(4326).to_file(self.polygons / f"{name}.geojson")

    def evaluate(self, *, labels: Path | None = None, spec: EvaluateSpec = SPEC, **compared: Any) -> EvaluationReport:
        return evaluate(self.request(labels, **compared), spec)

    def request(self, labels: Path | None = None, **compared: Any) -> EvaluationRequest:
        compared = compared or {"mosaics": self.run}
        return EvaluationRequest(self.images, labels or self.polygons, self.folder / "eval", **compared)


@pytest.fixture
def case(tmp_path: Path, make_scene: MakeScene) -> Case:
    return Case(tmp_path, make_scene)


def values(report: EvaluationReport) -> dict[str, float | None]:
    assert report.overall is not None, [scene.reason for scene in report.scenes]
    return {name: report.overall.mean[name].value for name in METRICS}


def errors_of(case: Case, name: str) -> NDArray[np.uint8]:
    with rasterio.open(case.folder / "eval" / "scenes" / name / "errors.tif") as dataset:
        return np.asarray(dataset.read(1))


def random_planes(seed: int, shape: tuple[int, int, int], *, background: bool = False) -> PixelPlanes:
    rng = np.random.default_rng(seed)
    blobs = rng.random((3, shape[0], -(-shape[1] // 5), -(-shape[2] // 5))).repeat(5, 2).repeat(5, 3)
    predicted, labelled, known = blobs[:, :, : shape[1], : shape[2]] > 0.5
    return PixelPlanes(
        predicted=predicted, labelled=labelled, counted=known | (rng.random(shape) < 0.7), background=background
    )


def count(planes: PixelPlanes, *, block_size: int, band_px: int = 2) -> tuple[BlockCounts, NDArray[np.uint8]]:
    counter = BlockCounter(
        planes.predicted.shape[1:], planes=len(planes.predicted), block_size=block_size, band_px=band_px
    )
    rows = []
    for row in counter.windows():
        codes = [counter.add(core, wide, planes.crop(*wide.toslices())) for core, wide in row]
        rows.append(np.concatenate(codes, axis=1))
    return counter.finish(), np.concatenate(rows)


# --- counts


@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 17, 40]), st.sampled_from([1, 3]), st.integers(0, 99)
)
def test_blocks_add_up_to_the_scene_whatever_their_size(
    height: int, width: int, block_size: int, band_px: int, seed: int
) -> None:
    planes = random_planes(seed, (2, height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "READ_SIDE_PX", 32)
        counts, codes = count(planes, block_size=block_size, band_px=band_px)
    whole = Confusion.of(planes.predicted[None], planes.labelled[None], planes.counted[None])
    sums = counts.pixels.sum(axis=0)
    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    np.testing.assert_array_equal(sums[:, :4].T, [getattr(whole, name) for name in names])
    for k in range(2):
        outline = score_boundary(planes.labelled[k], planes.predicted[k], planes.counted[k], width_px=band_px)
        union = outline.true_positives + outline.false_positives + outline.false_negatives
        assert sums[k, 4:].tolist() == [outline.true_positives, union]
    np.testing.assert_array_equal(codes, planes.codes())
    assert counts.wrong.sum() == np.isin(codes, (2, 3, 4)).sum()
    assert counts.counted.sum() == planes.counted.any(axis=0).sum()


def test_scores_are_those_of_the_confusion_of_all_pixels_together() -> None:
    planes = random_planes(3, (3, 70, 50))
    counts, _ = count(planes, block_size=16)
    scores = score_counts(counts, ClassPlanes(names=("a", "b", "c")), SPEC.bootstrap)
    whole = Confusion.of(planes.predicted[None], planes.labelled[None], planes.counted[None])
    for name in ("iou", "f1", "precision", "recall", "accuracy"):
        each = [scored.metrics[name].value for scored in scores.classes]
        assert each == pytest.approx(getattr(whole, name).tolist(), abs=1e-6)
        assert scores.mean[name].value == pytest.approx(getattr(whole, name).mean(), abs=1e-6)
        estimate = scores.mean[name]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low < estimate.value < estimate.high
    assert tuple(PIXEL_RATIOS) + tuple(OBJECT_RATIOS) == METRICS


def test_of_exclusive_classes_the_accuracy_is_the_share_of_right_pixels_and_the_background_is_no_class() -> None:
    rng = np.random.default_rng(0)
    predicted, labelled = rng.integers(0, 3, (2, 40, 40))
    index = np.arange(3)[:, None, None]
    everything = np.ones((3, 40, 40), bool)
    planes = PixelPlanes(predicted=predicted == index, labelled=labelled == index, counted=everything, background=True)
    counts, codes = count(planes, block_size=16)
    classes = ClassPlanes(names=("none", "a", "b"), background=True, exclusive=True)
    scores = score_counts(counts, classes, SPEC.bootstrap)
    whole = Confusion.of_index(predicted, labelled, classes=3, background=True)
    assert scores.mean["accuracy"].value == pytest.approx(whole.overall_accuracy, abs=1e-6)
    assert scores.mean["iou"].value == pytest.approx(whole.mean_iou, abs=1e-6)
    assert ((codes == 4) == ((predicted > 0) & (labelled > 0) & (predicted != labelled))).all()


@pytest.mark.parametrize(
    ("predicted", "labelled", "counted", "code"),
    [
        ((0, 0), (0, 0), (1, 1), 0),  # right, nothing there
        ((1, 0), (1, 0), (1, 1), 1),  # hit
        ((1, 0), (0, 0), (1, 1), 2),  # false alarm
        ((1, 1), (1, 0), (1, 1), 2),  # a hit and a false alarm: the error is shown
        ((0, 0), (1, 0), (1, 1), 3),  # miss
        ((0, 1), (1, 0), (1, 1), 4),  # one class taken for the other
        ((1, 1), (0, 0), (0, 0), 255),  # nobody looked
        ((1, 0), (0, 0), (0, 1), 0),  # wrong only where it does not count
    ],
)
def test_each_pixel_gets_one_code(
    predicted: tuple[int, ...], labelled: tuple[int, ...], counted: tuple[int, ...], code: int
) -> None:
    planes = (np.array(each, bool)[:, None, None] for each in (predicted, labelled, counted))
    assert error_codes(*planes).item() == code
    assert code in COLOURS


boxes = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(1, 12), st.integers(1, 12)).map(
        lambda each: shapely.box(each[0], each[1], each[0] + each[2], each[1] + each[3])
    ),
    max_size=8,
)


@given(boxes, boxes)
def test_objects_match_as_in_the_curve(truth: list[shapely.Polygon], found: list[shapely.Polygon]) -> None:
    reference, predicted = np.array(truth, object), np.array(found, object)
    curve = score_object_curve(reference, predicted)
    for side in place_objects(reference, predicted, grid_of(64)):
        assert side.matched.sum(axis=0).tolist() == list(curve.matched)


def test_calibration_is_that_of_the_same_pixels_sampled() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (500, 1)).astype(np.float32)
    target = rng.random((500, 1)) < 0.4
    expected = reliability(LogitSample(logits=logits, target=target, valid=np.ones_like(target)), "sigmoid")
    probability = (1 / (1 + np.exp(-logits))).T[:, None].astype(np.float32)
    parts = []
    for half in (slice(0, 100), slice(100, 500)):
        sums = CalibrationSums()
        sums.add(
            probability[..., half], target.T[:, None][..., half], np.ones((1, 1, 500), bool)[..., half], exclusive=False
        )
        parts.append(sums.finish())
    joined = join_bins([part for part in parts if part])
    assert joined is not None
    assert joined.count == tuple(expected.count)
    assert joined.ece == pytest.approx(expected.ece, abs=2e-6)


# --- scenes


def test_a_perfect_result_scores_one_everywhere(case: Case) -> None:
    case.add("a")
    report = case.evaluate()
    assert set(values(report).values()) == {1.0}
    assert set(np.unique(errors_of(case, "a"))) == {0, 1}
    assert report.worst == ()
    scores = report.scenes[0].scores
    assert scores is not None
    assert scores.classes[0].objects == {"truth": 5, "found": 5, "matched": 5}
    assert scores.calibration is not None


def test_what_is_missed_and_what_is_invented_is_counted_mapped_and_shown(case: Case) -> None:
    invented = shapely.box(40, 40, 52, 52)
    case.add("a")
    case.add("b", found=[*SQUARES[1:], invented])
    report = case.evaluate()
    codes = errors_of(case, "b")
    assert (codes[5:15, 5:15] == 3).all()
    assert (codes[40:52, 40:52] == 2).all()
    assert [(w.scene, w.row, w.col, w.wrong) for w in report.worst] == [("b", 32, 32, 144), ("b", 0, 0, 100)]
    assert all((case.folder / "eval" / str(w.image)).is_file() for w in report.worst)
    whole = report.overall
    assert whole is not None
    assert whole.classes[0].objects == {"truth": 10, "found": 10, "matched": 9}
    assert whole.classes[0].pixels["false_negative"] == 100
    assert values(report)["object_f1"] == 0.9
    assert values(report)["iou"] == pytest.approx(900 / (1000 + 144), abs=1e-6)


def test_masks_and_polygons_of_the_same_objects_score_the_same(case: Case) -> None:
    case.add("a", found=SQUARES[1:])
    assert values(case.evaluate(labels=case.masks)) == values(case.evaluate(labels=case.polygons))


def test_a_mosaic_and_the_polygons_made_of_it_score_the_same(case: Case) -> None:
    case.add("a", found=SQUARES[1:])
    case.add("b", found=[])
    by_mosaic, by_polygons = case.evaluate(), case.evaluate(polygons=case.run)
    assert values(by_mosaic) == values(by_polygons)
    assert by_polygons.overall is not None
    assert by_polygons.overall.calibration is None
    assert by_mosaic.planes == ClassPlanes(names=("roof",))


def test_a_polygon_file_of_any_kind_is_compared(case: Case) -> None:
    case.add("a")
    case.label("found", SQUARES[2:])
    found = case.polygons / "found.geojson"
    report = case.evaluate(labels=case.masks, polygons=found)
    assert values(report)["object_recall"] == 0.6
    assert values(report)["precision"] == 1.0


def test_a_resampled_mosaic_is_compared_on_its_own_grid(case: Case) -> None:
    case.add("a", reading=ReadingSpec(resolution_m=1.0))
    report = case.evaluate()
    assert report.scenes[0].shape == (SIDE // 2, SIDE // 2)
    iou = values(report)["iou"]
    assert iou is not None
    assert iou > 0.75  # borders of coarse pixels
    assert values(report)["object_f1"] == 1.0


def test_another_threshold_decides_pixels_and_polygons_again(case: Case) -> None:
    case.add("a")
    strict = replace(SPEC, segment=replace(SPEC.segment, polygons=PolygonSpec(threshold=0.99)))
    report = case.evaluate(spec=strict)
    assert (values(report)["recall"], values(report)["object_recall"]) == (0.0, 0.0)
    assert values(report)["precision"] is None


def test_outside_of_the_labelled_area_nothing_counts(case: Case) -> None:
    case.add("a", found=[*SQUARES, shapely.box(40, 40, 52, 52)])
    area = case.folder / "area.geojson"
    geopandas.GeoDataFrame(geometry=place([shapely.box(0, 0, 36, 96)]), crs=UTM).to_file(area)
    report = case.evaluate(spec=replace(SPEC, labelled_area=str(area)))
    assert set(values(report).values()) == {1.0}
    assert report.overall is not None
    assert report.overall.counted == 36 * SIDE
    assert report.overall.classes[0].objects["truth"] == 3
    assert (errors_of(case, "a")[:, 36:] == 255).all()


def test_exclusive_classes_are_distinguished(case: Case) -> None:
    card = ModelCard(bands=("red",), classes=("none", "roof", "road"), activation="softmax", background="none")

    def predict(tiles: NDArray[Any]) -> NDArray[Any]:
        kind = np.digitize(tiles[:, 0], (50, 150))
        return np.asarray(kind[:, None] == np.arange(3)[:, None, None], np.float32)

    truth = burn(SQUARES) + burn([shapely.box(30, 30, 36, 60)]) * 2
    seen = np.where(burn(SQUARES[:1]), 2, truth)  # the first roof is taken for road
    image = case.make_scene(np.stack([seen * 100] * 3).astype(np.uint8), name="images/a.tif", crs=UTM, transform=ORIGIN)
    segment_scene(image, case.run, predictor=predict, card=card)
    case.make_scene(truth.astype(np.uint8), name="masks/a.tif", crs=UTM, transform=ORIGIN)
    case.images.append(image)
    report = case.evaluate(labels=case.masks)
    assert report.planes == ClassPlanes(names=("none", "roof", "road"), background=True, exclusive=True)
    assert (errors_of(case, "a") == 4).sum() == 100
    whole = report.overall
    assert whole is not None
    assert whole.mean["accuracy"].value == pytest.approx(1 - 100 / SIDE**2, abs=1e-6)
    assert [each.objects["matched"] for each in whole.classes] == [0, 4, 1]
    assert whole.classes[1].metrics["recall"].value == 0.8


def test_a_model_is_run_first_and_not_again(case: Case, tmp_path: Path) -> None:
    case.add("a")
    model = write_checkpoint(tmp_path / "model.safetensors", classes=("roof",))
    spec = replace(SPEC, segment=replace(SPEC.segment, tiling=replace(SPEC.segment.tiling, tile_size=64)))
    first = case.evaluate(model=model, spec=spec)
    mosaic = case.folder / "eval" / "scenes" / "a" / "probability.tif"
    made = mosaic.stat().st_mtime_ns
    again = case.evaluate(model=model, spec=spec)
    assert mosaic.stat().st_mtime_ns == made
    assert first.overall == again.overall
    assert len(first.scenes[0].model) == 64
    assert str(mosaic) == first.scenes[0].found


def test_several_models_are_evaluated_as_one(case: Case, tmp_path: Path) -> None:
    case.add("a")
    models = [write_checkpoint(tmp_path / f"{seed}.safetensors", classes=("roof",), seed=seed) for seed in (0, 1)]
    spec = replace(SPEC, segment=replace(SPEC.segment, tiling=replace(SPEC.segment.tiling, tile_size=64)))
    report = case.evaluate(model=models, spec=spec)
    assert report.compared == f"{models[0]}, {models[1]}"
    assert len(report.scenes[0].model.split("+")) == 2
    assert "0.safetensors, 1.safetensors" in (case.folder / "eval" / "evaluation.html").read_text()
    with pytest.raises(SettingsError, match="model: there is no"):
        case.evaluate(model=[models[0], tmp_path / "nowhere.safetensors"], spec=spec)


def test_labels_that_cannot_be_used_are_reported_before_a_model_is_run(case: Case, tmp_path: Path) -> None:
    case.add("a")
    case.label("a", [shapely.box(5000, 5000, 5010, 5010)])
    model = write_checkpoint(tmp_path / "model.safetensors", classes=("roof",))
    (failed,) = case.evaluate(model=model).failed
    assert "no polygon of the labels touches" in (failed.reason or "")
    assert not (case.folder / "eval" / "scenes").exists()


def test_polygons_of_ours_without_the_classes_wanted_are_warned_of(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.add("a")
    case.evaluate(polygons=case.run, spec=replace(SPEC, classes=("roof",)))
    assert not caplog.text
    report = case.evaluate(polygons=case.run, spec=replace(SPEC, classes=("house",)))
    assert values(report)["iou"] == 0
    assert re.search(r"a/polygons\.gpkg: holds no polygon of the classes house; check classes", caplog.text)


def test_one_bad_scene_loses_no_other(case: Case, tmp_path: Path) -> None:
    case.add("a")
    case.add("far")
    case.label("far", [shapely.box(5000, 5000, 5010, 5010)])
    case.add("unrun")
    (case.run / "unrun" / "probability.tif").unlink()
    case.images.append(write_damaged(tmp_path / "images" / "hurt.tif"))
    case.label("hurt", SQUARES)
    case.add("moved")
    (case.run / "moved" / "probability.tif").write_bytes((case.run / "a" / "probability.tif").read_bytes())
    with rasterio.open(case.run / "moved" / "probability.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.transform = rasterio.Affine.translation(5, 0) @ ORIGIN
    report = case.evaluate()
    assert {scene.scene: scene.status for scene in report.scenes} == {
        "a": "done", "far": "failed", "unrun": "failed", "hurt": "failed", "moved": "failed",
    }  # fmt: skip
    reasons = {scene.scene: scene.reason or "" for scene in report.failed}
    assert "no polygon of the labels touches" in reasons["far"]
    assert "unrun/probability.tif is missing" in reasons["unrun"]
    assert "hurt" in reasons["hurt"]
    assert "is not a result of the scene" in reasons["moved"]
    page = (case.folder / "eval" / "evaluation.html").read_text()
    assert all(f'<td class="text">{name}</td>' in page for name in reasons)
    assert "4 of 5 scenes could not be evaluated" in page


def test_when_every_scene_fails_the_page_reports_it(case: Case) -> None:
    case.add("a")
    (case.run / "a" / "probability.tif").unlink()
    report = case.evaluate()
    assert report.overall is None
    assert "No scene could be evaluated" in (case.folder / "eval" / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda case: {"mosaics": case.run, "polygons": case.run}, "exactly one of model, mosaics and polygons"),
        (lambda case: {"mosaics": case.folder / "nowhere"}, "mosaics: there is no .*nowhere"),
        (lambda case: {"mosaics": case.run / "a" / "probability.tif"}, "is one mosaic, but 2 scenes are named"),
        (lambda case: {"spec": replace(SPEC, classes=("tree",))}, "names tree, which .* does not have; it has roof"),
    ],
    ids=["two results", "no such path", "one mosaic for two scenes", "no common class"],
)
def test_wrong_usage_is_reported_at_once(case: Case, change: Callable[[Case], dict[str, Any]], reason: str) -> None:
    case.add("a")
    case.add("b")
    with pytest.raises(SettingsError, match=reason):
        case.evaluate(**change(case))


@pytest.mark.parametrize(
    "wrong", [{"boundary_px": 0}, {"worst_windows": 101}, {"classes": ("a", "a")}], ids=lambda wrong: next(iter(wrong))
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^{next(iter(wrong))} must"):
        EvaluateSpec(**wrong)


# --- report and page


def test_the_numbers_are_all_in_the_json_and_the_error_map_is_a_cog_with_colours(case: Case) -> None:
    from rio_cogeo.cogeo import cog_validate

    case.add("a", found=SQUARES[1:])
    report = case.evaluate()
    written = json.loads((case.folder / "eval" / "evaluation.json").read_text())
    assert written["overall"]["mean"]["iou"]["value"] == values(report)["iou"]
    assert written["scenes"][0]["scores"]["classes"][0]["objects"]["matched"] == 4
    path = case.folder / "eval" / "scenes" / "a" / "errors.tif"
    assert cog_validate(path)[0]
    with rasterio.open(path) as dataset:
        assert dataset.nodata == 255
        assert {code: dataset.colormap(1)[code] for code in (1, 2, 3)} == {code: COLOURS[code] for code in (1, 2, 3)}
        assert dataset.tags()["VALUE_3"] == "miss"
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


class _Reader(HTMLParser):
    """Collects what a page asks for, and whether its elements are closed."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.resources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)  # <path/> and its like

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_escapes_its_values(case: Case) -> None:
    case.add("a", found=SQUARES[1:])
    report = case.evaluate()
    evil = "<script>alert(1)</script>"
    scenes = (*report.scenes, replace(report.scenes[0], scene=evil, status="failed", scores=None, reason=evil))
    page = render_page(case.folder / "eval", replace(report, scenes=scenes, labels=evil))
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    assert "script" not in reader.tags
    assert page.count("&lt;script&gt;") == 3
    outside = [resource for resource in reader.resources if not resource.startswith("data:image/png;base64,")]
    assert {re.sub("worst/.*", "worst", resource) for resource in outside} == {
        "evaluation.json", "scenes/a/errors.tif", "worst",
    }  # fmt: skip
    assert "url(" not in page


def test_a_window_is_read_the_same_however_it_is_cut(case: Case) -> None:
    from pipeline.evaluation.plan import find_label_files, open_comparison, plan_evaluation

    case.add("a", found=SQUARES[2:])
    plan = plan_evaluation(case.request(), SPEC)
    comparison = open_comparison(plan, plan.entries[0], find_label_files(plan))
    whole, _ = comparison.read(Window(0, 0, SIDE, SIDE))
    part, _ = comparison.read(Window(7, 11, 40, 50))
    np.testing.assert_array_equal(whole.crop(slice(11, 61), slice(7, 47)).labelled, part.labelled)
    np.testing.assert_array_equal(whole.crop(slice(11, 61), slice(7, 47)).predicted, part.predicted)
    comparison.close()


@pytest.mark.slow
def test_the_flow_reports_which_scenes_failed_and_keeps_the_rest(ephemeral: None, case: Case, tmp_path: Path) -> None:
    from flows.evaluate import evaluate_scenes
    from flows.summaries import EvaluationFailedError

    case.add("a")
    settings = {"bootstrap": {"block_size": 32, "resamples": 100}, "worst_windows": 1}
    given = {"labels": [str(case.polygons)], "mosaics": str(case.run), "settings": settings}
    report = evaluate_scenes([str(case.images[0])], out=str(tmp_path / "one"), **given)
    assert values(report)["iou"] == 1.0
    hurt = write_damaged(tmp_path / "images" / "hurt.tif")
    case.label("hurt", SQUARES)
    scenes = [str(path) for path in (*case.images, hurt)]
    state = evaluate_scenes(scenes, out=str(tmp_path / "two"), return_state=True, **given)
    assert state.is_failed()
    assert str(state.message).startswith("1 of 2 scenes could not be evaluated: hurt: ")
    error = state.result(raise_on_failure=False)
    assert isinstance(error, EvaluationFailedError)
    assert error.report is not None
    assert [scene.status for scene in error.report.scenes] == ["done", "failed"]
    assert (tmp_path / "two" / "evaluation.html").is_file()
