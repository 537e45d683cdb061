"""The command: what it makes, what it says, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import psutil
import pytest
import rasterio
import shapely
from conftest import Call, MakeScene
from support.models import write_checkpoint, write_damaged

import pipeline
import pipeline.run.scenes
from pipeline.errors import TransientError

FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]


def statuses(out: Path) -> dict[str, str]:
    return {scene["scene"]: scene["status"] for scene in json.loads((out / "run.json").read_text())["scenes"]}


# segment


def test_files_globs_and_folders_are_segmented(call: Call, make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    for seed, name in enumerate(("one.tif", "glob/two.tif", "glob/other.tif", "folder/three.tif", "folder/notes.txt")):
        make_scene(name=name, seed=seed)
    out = tmp_path / "out"
    sources = [tmp_path / "one.tif", tmp_path / "glob" / "t*.tif", tmp_path / "folder"]
    code, stdout, stderr = call("segment", *sources, "--model", model, "--out", out, *FAST)
    assert (code, stdout) == (0, "")
    assert statuses(out) == {"one": "done", "two": "done", "three": "done"}
    assert {path.name for path in out.iterdir()} == {"one", "two", "three", "run.json", "collection.json"}
    assert str(out / "run.json") in stderr


def test_a_damaged_scene_among_good_ones_fails_alone(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "out"
    scenes = [make_scene(name="a.tif"), write_damaged(tmp_path / "b.tif"), make_scene(name="c.tif", seed=1)]
    code, _, stderr = call("segment", *scenes, "--model", model, "--out", out, *FAST)
    assert code == 1
    assert statuses(out) == {"a": "done", "b": "failed", "c": "done"}
    assert {path.name for path in out.iterdir()} == {"a", "c", "run.json", "quarantine.json", "collection.json"}
    reason = json.loads((out / "run.json").read_text())["scenes"][1]["reason"]
    assert f"failed  b: {reason}" in stderr
    assert str(scenes[1]) in reason
    assert "Traceback" not in stderr


def test_a_second_run_skips_and_a_third_with_another_setting_does_not(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    run = ["segment", make_scene(name="a.tif"), "--model", model, "--out", tmp_path / "out", *FAST]
    seen = []
    for more in ([], [], ["--set", "polygons.min_area_m2=2"]):
        assert call(*run, *more)[0] == 0
        seen.append(statuses(tmp_path / "out")["a"])
    assert seen == ["done", "skipped", "done"]


def test_settings_come_from_a_file_and_set_is_stronger(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("tiling: {tile_size: 64, overlap: 8}\nblend: average\n")
    out = tmp_path / "out"
    arguments = ["segment", make_scene(name="a.tif"), "--model", model, "--out", out, "--config", config]
    assert call(*arguments, "--set", "tiling.tile_size=32")[0] == 0
    settings = json.loads((out / "a" / "report.json").read_text())["settings"]
    assert (settings["tiling"], settings["blend"]) == ({"tile_size": 32, "overlap": 8}, "average")


def test_several_models_and_turned_tiles_are_averaged_and_the_passes_reported(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    other = write_checkpoint(tmp_path / "other.safetensors", seed=1)
    run = ["segment", make_scene(name="a.tif"), "--model", model, "--out", tmp_path / "out", *FAST]
    seen = []
    for more in ([], ["--model", other], ["--model", other, "--set", "inference.augment=rotations"]):
        code, _, stderr = call(*run, *more)
        assert code == 0
        seen.append((json.loads((tmp_path / "out" / "a" / "report.json").read_text())["passes"], stderr))
    assert [passes for passes, _ in seen] == [1, 2, 8]
    assert "passes" not in seen[0][1]
    assert "Mpx/s, 8 passes per tile -> " in seen[2][1]


def test_models_of_an_ensemble_must_have_one_threshold(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    other = write_checkpoint(tmp_path / "other.safetensors", threshold=0.3)
    run = ["segment", make_scene(), "--model", model, "--model", other, "--out", tmp_path / "out", *FAST]
    code, _, stderr = call(*run)
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "polygons.threshold must be set for these models: their own differ (0.5, 0.3)" in stderr
    assert call(*run, "--set", "polygons.threshold=0.4")[0] == 0


@pytest.mark.slow
def test_two_processes_are_a_setting(call: Call, make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    scenes = [make_scene(name="a.tif", height=150), write_damaged(tmp_path / "b.tif")]
    run = ["segment", *scenes, "--model", model, *FAST]
    assert call(*run, "--out", tmp_path / "one")[0] == 1
    code, _, stderr = call(*run, "--out", tmp_path / "two", "--set", "distribute.workers=2")
    assert (code, len(stderr.splitlines())) == (1, 3), stderr
    assert statuses(tmp_path / "two") == {"a": "done", "b": "failed"}
    for name in ("probability.tif", "mask.tif", "polygons.gpkg"):
        assert (tmp_path / "one" / "a" / name).read_bytes() == (tmp_path / "two" / "a" / name).read_bytes()


def test_a_crs_can_be_given_to_scenes_without_one(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    run = ["segment", make_scene(name="a.tif", crs=None), "--model", model, "--out", tmp_path / "out", *FAST]
    code, _, stderr = call(*run)
    assert code == 1
    assert "--crs" in stderr
    assert call(*run, "--crs", "EPSG:32633")[0] == 0


@pytest.mark.parametrize("name", ["[a].tif", "[bold]b[/].tif", "sp ace.tif", "ümlaut.tif"])
def test_odd_names_are_shown_as_they_are(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str, name: str
) -> None:
    out = tmp_path / "[out]"
    scene = make_scene(name=name.replace("/", "_"))
    code, _, stderr = call("segment", scene, "--model", model, "--out", out, *FAST)
    assert code == 0
    assert f"summary: {out / 'run.json'}" in stderr
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    assert f"-> {folder}" in stderr
    code, stdout, _ = call("inspect", scene)
    assert code == 0
    assert scene.name in stdout.replace("\n", "")
    code, _, stderr = call("vectorize", folder / "probability.tif")
    assert f"{folder / 'vectorized.gpkg'}: " in stderr


def test_no_bar_and_no_colour_is_written_without_a_terminal(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    _, _, stderr = call("segment", make_scene(), "--model", model, "--out", tmp_path / "out", *FAST)
    assert "\x1b" not in stderr
    assert "Mpx/s ━" not in stderr
    assert len(stderr.splitlines()) == 2


# Catalogs


def write_list(folder: Path, *lines: str) -> Path:
    index = folder / "list.csv"
    index.write_text("\n".join(("id,path", *lines)) + "\n")
    return index


def test_scenes_of_a_table_are_segmented_and_a_broken_row_fails_alone(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    make_scene(name="a.tif")
    make_scene(name="b.tif", seed=1)
    index = write_list(tmp_path, "north,a.tif", "../out,b.tif", "south,b.tif")
    out = tmp_path / "out"
    code, _, stderr = call("segment", index, "--model", model, "--out", out, *FAST)
    assert code == 1
    assert statuses(out) == {"north": "done", f"{index}, line 3": "failed", "south": "done"}
    assert {path.name for path in out.iterdir()} == {"north", "south", "run.json", "collection.json"}
    assert f"failed  {index}, line 3: the id '../out' cannot name a folder" in stderr


def test_limit_and_box_choose_scenes_and_nothing_is_no_failure(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scenes = [make_scene(name=f"{name}.tif", seed=seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    run = ["segment", *scenes, "--model", model, "--out", out, *FAST]
    code, _, stderr = call(*run, "--bbox", "-10,40,-5,50")
    assert (code, stderr) == (0, "no scene to process\n")
    assert not out.exists()
    assert call(*run, "--limit", 1, "--bbox", "-10,-80,170,80")[0] == 0
    assert statuses(out) == {"a": "done"}


def test_catalog_lists_pending_finished_and_refused_scenes(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    for name, bands in (("a", 3), ("b", 3), ("gray", 1)):
        make_scene(name=f"{name}.tif", bands=bands)
    index = write_list(tmp_path, "a,a.tif", "b,b.tif", "gray,gray.tif", "gone,gone.tif", "c,../c.tif")
    out = tmp_path / "out"
    assert call("segment", tmp_path / "a.tif", "--model", model, "--out", out, *FAST)[0] == 0
    before = sorted(out.rglob("*"))

    code, stdout, stderr = call("catalog", index, "--model", model, "--out", out, *FAST)
    assert (code, stderr) == (1, "1 runs, 1 done, 3 refused\n")
    lines = stdout.splitlines()
    assert lines[0] == f"done    a: {tmp_path}/a.tif: an equal result is in {out / 'a'}"
    assert lines[1].startswith(f"runs    b: {tmp_path}/b.tif: fits the model, 40 x 50 px of 0.5 m, 3 bands of uint8")
    assert lines[1].endswith("; there is no result yet")
    assert "the model needs band(s)" in lines[2]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["refused", "gray:"],
        ["refused", "gone:"],
        ["refused", f"{index},"],
    ]
    assert sorted(out.rglob("*")) == before

    _, stdout, _ = call("catalog", index, "--model", model, "--out", out, *FAST, "--set", "tiling.tile_size=64")
    assert stdout.splitlines()[0].endswith("; the result in its folder is of other inputs")


def test_an_area_excludes_scenes_and_parts_of_scenes_outside(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    make_scene(name="a.tif")
    make_scene(name="b.tif", transform=rasterio.Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000))
    index, out = write_list(tmp_path, "a,a.tif", "b,b.tif", "gone,gone.tif"), tmp_path / "out"
    half = geopandas.GeoSeries([shapely.box(500_000, 5_399_000, 500_010, 5_400_001)], crs="EPSG:32633")
    area = tmp_path / "the #1 area.geojson"
    half.to_crs(4326).to_file(area)
    code, stdout, stderr = call("catalog", index, "--area", area)
    assert (code, stderr) == (1, "1 runs, 0 done, 1 refused, 1 left out\n")
    assert f"left out b: {tmp_path}/b.tif: does not touch the area\n" in stdout
    assert call("segment", index, "--model", model, "--out", out, "--area", area, *FAST)[0] == 1
    assert statuses(out) == {"a": "done", "gone": "failed"}
    with rasterio.open(out / "a" / "mask.tif") as mask:
        kept = mask.read(1) != 255
    assert kept[:, :20].all()
    assert not kept[:, 20:].any()
    assert json.loads((out / "a" / "report.json").read_text())["area_share"] == 0.4
    code, _, stderr = call("segment", index, "--model", model, "--out", out, "--area", tmp_path / "none.gpkg")
    assert (code, "area: " in stderr, "check the path" in stderr) == (2, True, True)


def test_catalog_without_a_model_lists_what_can_be_read(call: Call, make_scene: MakeScene, tmp_path: Path) -> None:
    make_scene(name="gray.tif", bands=1)
    code, stdout, _ = call("catalog", tmp_path / "gray.tif")
    assert (code, stdout) == (0, f"runs    gray: {tmp_path}/gray.tif: 40 x 50 px of 0.5 m, 1 bands of uint8\n")
    code, _, stderr = call("catalog", tmp_path / "gray.tif", "--out", tmp_path)
    assert code == 2
    assert "name it with --model" in stderr


# Wrong usage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--set", "tiling.tile_sise=32"], "did you mean tiling.tile_size?"),
        (["--set", "tile_size=32"], "did you mean tiling.tile_size?"),
        (["--set", "tiling.tile_size=big"], "tiling.tile_size = 'big': "),
        (["--set", "tiling.tile_size"], "must read section.key=value"),
        (["--limit", "0"], "catalog.limit must be at least 1, not 0"),
        (["--bbox", "0,1,2"], "--bbox 0,1,2: must be left,bottom,right,top in degrees"),
        (["--bbox", "0,50,10,40"], "catalog.bbox must be left,bottom,right,top in degrees"),
        (["--set", "tiling.overlap=32"], "overlap must be at least 0 and smaller than tile_size (32 px), not 32"),
        (["--set", "tiling.tile_size=33"], "tiling.tile_size must be a multiple of 4"),
        (["--set", "polygons.min_area_m2=-1"], "polygons.min_area_m2 must be >= 0, not -1"),
        (["--set", "polygons.threshold=50"], "polygons.threshold must be above 0 and at most 1, not 50"),
        (["--set", "inference.device=abacus"], "inference.device = 'abacus'"),
        (["--set", "inference.device=cpu,cuda:0"], "devices of different types"),
        (["--set", "distribute.workers=2", "--scheduler", "tcp://a:1"], "distribute.scheduler has workers of its own"),
        (["--set", "inference.augment=mirror"], "inference.augment = 'mirror'"),
        (["--crs", "EPSG:1"], "reading.crs"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such settings file"),
        (["--scheduler", "nonsense"], "distribute.scheduler must be an address like"),
        (["nowhere.tif"], "nowhere.tif: no such file or folder"),
        (["nowhere/*.tif"], "matches no file"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors: there is no such checkpoint file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_stop_before_any_work(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str, change: list[str], reason: str
) -> None:
    chosen = [] if "--model" in change else ["--model", model]
    code, _, stderr = call("segment", make_scene(), *chosen, "--out", tmp_path / "out", *FAST, *change)
    assert code == 2
    assert reason in stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["segment", "a.tif", "--modle", "m"], "Did you mean --model"),
        (["segment", "a.tif", "--out", "o"], "--model"),
        (["segmnt"], "segmnt"),
        (["demo", "--size", "big"], "big"),
    ],
)
def test_misspelt_options_and_commands_are_named(call: Call, arguments: list[str], reason: str) -> None:
    code, _, stderr = call(*arguments)
    assert code == 2
    assert reason in stderr
    assert "Traceback" not in stderr
    assert stderr.count(reason) == 1


@pytest.mark.parametrize("command", ["inspect", "vectorize"])
def test_a_missing_file_is_wrong_usage(call: Call, command: str) -> None:
    code, _, stderr = call(command, "nowhere.tif")
    assert code == 2
    assert "nowhere.tif" in stderr
    assert len(stderr.splitlines()) == 1


def test_an_out_that_is_a_file_is_wrong_usage(call: Call, make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    code, _, stderr = call("segment", make_scene(), "--model", model, "--out", out, *FAST)
    assert code == 2
    assert f"{out}: " in stderr
    assert len(stderr.splitlines()) == 1
    assert out.read_text() == "precious"


def test_debug_shows_the_traceback_at_any_position(call: Call, model: str) -> None:
    for arguments in (["--debug", "segment", "nowhere.tif"], ["segment", "nowhere.tif", "--debug"]):
        code, _, stderr = call(*arguments, "--model", model, "--out", "out")
        assert code == 2
        assert "Traceback" in stderr
        assert "read.py" in stderr


def test_an_internal_error_is_one_paragraph_too(
    call: Call, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("pipeline.cli.inspect.inspect_path", faulty)
    code, _, stderr = call("inspect", make_scene())
    assert code == 1
    assert "unexpected ZeroDivisionError: oops" in stderr
    assert "--debug" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_keeps_finished_scenes_and_the_finished_part_of_the_current_one(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.segment as segment

    scenes = [make_scene(name=name) for name in ("a.tif", "b.tif", "c.tif")]
    shape = segment.vectorize_mosaic

    def interrupted(mosaic: Path, target: Path, **kwargs: Any) -> Any:
        if mosaic.parents[1].name == ".b.partial":
            raise KeyboardInterrupt
        return shape(mosaic, target, **kwargs)

    monkeypatch.setattr(segment, "vectorize_mosaic", interrupted)
    out = tmp_path / "out"
    code, _, stderr = call("segment", *scenes, "--model", model, "--out", out, *FAST)
    assert code == 130
    assert "run again to continue" in stderr
    assert {path.name for path in out.iterdir()} == {"a", ".b.partial", "run.json", "collection.json"}
    assert statuses(out) == {"a": "done", "b": "not run", "c": "not run"}
    monkeypatch.setattr(segment, "vectorize_mosaic", shape)
    assert call("segment", *scenes, "--model", model, "--out", out, *FAST)[0] == 0
    assert json.loads((out / "b" / "report.json").read_text())["reused"] == ["mosaic", "mask"]
    assert not (out / ".b.partial").exists()
    assert statuses(out) == {"a": "skipped", "b": "done", "c": "done"}


# failures of a run


def test_a_scene_in_quarantine_is_left_alone_until_it_or_a_setting_changes(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    out, bad = tmp_path / "out", write_damaged(tmp_path / "b.tif")
    run = ["segment", make_scene(name="a.tif"), bad, "--model", model, "--out", out, *FAST]
    assert call(*run)[0] == 1
    code, _, stderr = call(*run)
    assert (code, statuses(out)) == (3, {"a": "skipped", "b": "quarantined"})
    assert "b: in quarantine since 20" in stderr
    assert f"{bad}: damaged at rows" in stderr
    assert call(*run, "--retry-quarantined")[0] == 1
    assert call(*run, "--set", "blend=average")[0] == 1
    make_scene(name="b.tif", seed=1)
    assert call(*run)[0] == 0
    assert json.loads((out / "quarantine.json").read_text())["scenes"] == []


def test_a_hopeless_run_ends_early_and_lists_what_was_not_run(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    out, scenes = tmp_path / "out", [write_damaged(tmp_path / f"{name}.tif") for name in "abcd"]
    code, _, stderr = call("segment", *scenes, "--model", model, "--out", out, *FAST, "--max-failures", 2)
    assert (code, statuses(out)) == (1, {"a": "failed", "b": "failed", "c": "not run", "d": "not run"})
    assert "not run 2 scenes: the run was stopped after 2 failures (run.max_failures)" in stderr


def test_a_transient_error_is_retried_by_the_command(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: dict[str, int] = {}
    segment_entry = pipeline.run.one_scene.segment_entry

    def shaky(entry: Any, *args: Any, **kwargs: Any) -> Any:
        tries[entry.id] = tries.get(entry.id, 0) + 1
        if entry.id == "gone" or tries[entry.id] < 3:
            raise TransientError("the disk is away")
        return segment_entry(entry, *args, **kwargs)

    monkeypatch.setattr(pipeline.run.scenes, "segment_entry", shaky)
    scenes, out = [make_scene(name="gone.tif"), make_scene(name="shaky.tif")], tmp_path / "out"
    hasty = ["--set", "run.retry_delay_s=0", "--set", "run.retries=2"]
    assert call("segment", *scenes, "--model", model, "--out", out, *FAST, *hasty)[0] == 1
    assert tries == {"gone": 3, "shaky": 3}
    assert statuses(out) == {"gone": "failed", "shaky": "done"}
    assert not (out / "quarantine.json").exists()


def test_a_quarantine_that_cannot_be_read_stops_before_any_work(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quarantine.json").write_text("[1]")
    code, _, stderr = call("segment", make_scene(), "--model", model, "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert "quarantine.json: no readable list" in stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quarantine.json"]


# vectorize, inspect, train


def test_polygons_of_all_scenes_are_merged_on_request(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scene = make_scene(name="one.tif")
    (tmp_path / "two.tif").write_bytes(scene.read_bytes())
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no scene")
    out = tmp_path / "out"
    code, stdout, stderr = call(
        "segment", scene, tmp_path / "two.tif", broken, "--model", model, "--out", out, "--merge", "gpkg", *FAST
    )
    assert (code, stdout) == (1, "")
    merged = geopandas.read_file(out / "polygons.gpkg", layer="polygons")
    alone = geopandas.read_file(out / "two" / "polygons.gpkg", layer="polygons")
    assert len(merged) == len(alone) > 0
    (asset,) = json.loads((out / "collection.json").read_text())["assets"].values()
    assert (asset["href"], asset["type"]) == ("./polygons.gpkg", "application/geopackage+sqlite3")
    assert f"{out / 'polygons.gpkg'}: {len(merged)} polygons of 2 scenes; left out {len(alone)} seen twice" in stderr
    code, _, stderr = call("merge", out)
    assert code == 0
    assert "(as it was): " in stderr
    code, _, stderr = call("merge", out, "--into", "parquet", "--set", "merge.crs=EPSG:4326")
    assert code == 0
    assert len(geopandas.read_parquet(out / "polygons.parquet").to_crs(merged.crs)) == len(merged)
    code, _, stderr = call("merge", tmp_path / "nowhere")
    assert code == 2
    assert "holds no whole result" in stderr


def test_vectorize_makes_polygons_again_with_other_settings(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "out"
    call("segment", make_scene(name="a.tif"), "--model", model, "--out", out, *FAST)
    mosaic = out / "a" / "probability.tif"
    before = (out / "a" / "polygons.gpkg").read_bytes()
    code, _, stderr = call("vectorize", mosaic, "--out", tmp_path / "big.gpkg", "--set", "polygons.min_area_m2=3")
    assert code == 0
    assert "big.gpkg: " in stderr
    assert (geopandas.read_file(tmp_path / "big.gpkg", layer="polygons")["area_m2"] >= 3).all()
    assert call("vectorize", mosaic)[0] == 0
    assert (out / "a" / "vectorized.gpkg").read_bytes() == before
    assert (out / "a" / "polygons.gpkg").read_bytes() == before


@pytest.mark.parametrize(
    ("target", "reason"), [("p.shp", "'.shp' is none of them"), ("nowhere/p.gpkg", "nowhere/p.gpkg")]
)
def test_vectorize_refuses_targets_that_it_cannot_write(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str, target: str, reason: str
) -> None:
    call("segment", make_scene(name="a.tif"), "--model", model, "--out", tmp_path / "out", *FAST)
    mosaic = tmp_path / "out" / "a" / "probability.tif"
    code, _, stderr = call("vectorize", mosaic, "--out", tmp_path / target)
    assert code == 2
    assert reason in stderr
    assert len(stderr.splitlines()) == 1


def test_vectorize_refuses_a_raster_that_is_no_mosaic(call: Call, make_scene: MakeScene) -> None:
    scene = make_scene()
    code, _, stderr = call("vectorize", scene)
    assert code != 0
    assert "no probability mosaic of ours" in stderr
    assert not scene.with_name("polygons.gpkg").exists()


def test_inspect_distinguishes_scene_mosaic_and_checkpoint(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scene = make_scene(name="a.tif")
    call("segment", scene, "--model", model, "--out", tmp_path / "out", *FAST)
    for path, kind, fact in (
        (scene, "scene", "EPSG:32633"),
        (tmp_path / "out" / "a" / "probability.tif", "mosaic", "0..254"),
        (model, "checkpoint", "red, green, blue"),
    ):
        code, stdout, _ = call("inspect", path)
        assert code == 0
        assert f": {kind}" in stdout.replace("\n", " ")
        assert fact in stdout


def test_inspect_reports_whether_scene_and_model_fit(call: Call, make_scene: MakeScene, model: str) -> None:
    code, stdout, _ = call("inspect", make_scene(), "--model", model)
    assert (code, stdout.split()[-1]) == (0, "yes")
    code, stdout, _ = call("inspect", make_scene(bands=1), "--model", model)
    assert code == 1
    assert "no: " in stdout


def test_train_makes_a_checkpoint_that_segments(call: Call, make_scene: MakeScene, tmp_path: Path) -> None:
    inside = np.kron(np.random.default_rng(0).random((8, 8)) < 0.4, np.ones((16, 16), bool))
    pixels = np.where(inside, 200, 60)[None].repeat(3, axis=0).astype(np.uint8)
    scene = make_scene(pixels, name="town.tif")
    with rasterio.open(scene) as dataset:
        left, top = dataset.transform.c, dataset.transform.f
    roofs = [shapely.box(left + 8 * c, top - 8 * r - 8, left + 8 * c + 8, top - 8 * r)
             for r, c in np.argwhere(inside[::16, ::16])]  # fmt: skip
    labels = tmp_path / "roofs.geojson"
    geopandas.GeoDataFrame(geometry=roofs, crs="EPSG:32633").to_crs(4326).to_file(labels)
    settings = {
        "network.depth": 2, "network.base_channels": 8, "samples.tile_size": 32, "samples.batch_size": 4,
        "samples.windows_per_epoch": 32, "split.block_size": 32, "samples.threads": 1, "learning.epochs": 2,
        "learning.learning_rate": 0.005,
    }  # fmt: skip
    given = [token for key, value in settings.items() for token in ("--set", f"{key}={value}")]
    model = tmp_path / "[model].safetensors"
    code, _, stderr = call("train", "--images", scene, "--labels", labels, "--out", model, *given)
    assert code == 0, stderr
    assert f"{model}: validation IoU " in stderr
    assert call("segment", scene, "--model", model, "--out", tmp_path / "out", *FAST)[0] == 0


def test_train_refuses_misspelt_settings(call: Call, make_scene: MakeScene, tmp_path: Path) -> None:
    code, _, stderr = call(
        "train", "--images", make_scene(), "--labels", "l.geojson", "--out", tmp_path / "m.safetensors",
        "--set", "learning.epoch=3",
    )  # fmt: skip
    assert code == 2
    assert "did you mean learning.epochs?" in stderr


# As a real process


def run(*arguments: object, code: str = "from pipeline.cli import main; main()") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_help_answers_without_loading_the_heavy_libraries() -> None:
    done = run(
        "--help",
        code="""
import sys
from pipeline.cli import main
try:
    main()
finally:
    heavy = {"torch", "rasterio", "prefect", "dask", "distributed", "geopandas", "pydantic", "numpy", "numba"}
    print("loaded:", *sorted(heavy & set(sys.modules)), file=sys.stderr)
""",
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "loaded:"
    for command in ("segment", "vectorize", "inspect", "train", "demo", "--version"):
        assert command in done.stdout


def test_version_is_printed_alone() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, pipeline.__version__, "")


def test_the_command_as_a_process_prints_little_and_exits_with_zero(
    make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    done = run("segment", make_scene(name="a.tif"), "--model", model, "--out", tmp_path / "out", *FAST)
    assert (done.returncode, done.stdout) == (0, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("done")
    assert second.startswith("summary: ")


@pytest.mark.parametrize(("sent", "code_wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_from_outside_ends_the_process_and_leaves_nothing_partial(
    make_scene: MakeScene, tmp_path: Path, model: str, sent: signal.Signals, code_wanted: int
) -> None:
    """The process sends itself what a terminal or a service manager sends, in the middle of the second strip."""
    code = f"""
import os, signal
import pipeline.inference.region.run as region
from pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
write, calls = region.to_levels, []
def to_levels(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), {sent:d})
    return write(*arguments)
region.to_levels = to_levels
main()
"""
    done = run(
        "segment", make_scene(height=300), "--model", model, "--out", tmp_path / "out", *FAST, code=code
    )  # fmt: skip
    assert done.returncode == code_wanted, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    assert [*statuses(tmp_path / "out").values()] == ["not run"]


def _workers_start(run: psutil.Process, out: Path) -> bool:
    return any("spawn_main" in " ".join(child.cmdline()) for child in run.children())


def _a_region_is_done(run: psutil.Process, out: Path) -> bool:
    return any(out.glob(".*.partial/stages/region-*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [_workers_start, _a_region_is_done])
def test_ctrl_c_ends_a_run_with_its_workers_and_prints_one_line(
    make_scene: MakeScene, tmp_path: Path, model: str, moment: Callable[[psutil.Process, Path], bool]
) -> None:
    """As a terminal does: all processes of the run get the signal."""
    out, scene = tmp_path / "out", make_scene(name="a.tif", height=600, width=400)
    work = ["segment", scene, "--model", model, "--out", out, *FAST, "--set", "distribute.workers=2"]
    command = [sys.executable, "-c", AS_IN_A_TERMINAL, *map(str, work), "--set", "distribute.regions=12"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while not moment(psutil.Process(run.pid), out):
            assert run.poll() is None
            time.sleep(0.005)
        processes = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)
        stderr = run.communicate(timeout=60)[1]
    assert (run.returncode, stderr) == (130, "stopped; finished scenes are complete, run again to continue\n")
    assert not psutil.wait_procs(processes, timeout=30)[1]
    if moment is _a_region_is_done:
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert "of 12 regions" in json.loads((out / "a" / "report.json").read_text())["reused"][0]


AS_IN_A_TERMINAL = """
import signal
from pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
if __name__ == "__main__":
    main()
"""
