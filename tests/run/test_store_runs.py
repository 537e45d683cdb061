"""Runs from an object store into an object store: the same results as between folders, and as safe from kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pystac
import pytest
from conftest import Call, MakeScene
from support.object_stores import Store

import pipeline.segment
from pipeline.distribute.executor import LocalExecutor
from pipeline.errors import TransientError
from pipeline.results import OUTPUTS

ROOT = Path(__file__).parents[2]
FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "run.retries=0"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]


def statuses(store: Store) -> dict[str, str]:
    return {scene["scene"]: scene["status"] for scene in json.loads(store.get("out/run.json"))["scenes"]}


def test_a_run_into_a_store_leaves_the_bytes_of_a_run_into_a_folder(
    store: Store, call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    far, out = f"s3://{store.bucket}/in", f"s3://{store.bucket}/out"
    for seed, name in enumerate(("one.tif", "two.tif")):
        store.put(f"in/{name}", make_scene(name=f"in/{name}", seed=seed))
    store.put("in/lost.tif", make_scene(name="in/lost.tif", crs=None))
    code, _, stderr = call("segment", f"{far}/", "--model", model, "--out", out, *FAST)
    assert (code, statuses(store)) == (1, {"lost": "failed", "one": "done", "two": "done"})
    assert f"summary: {out}/run.json" in stderr
    assert f"-> {out}/one" in stderr.replace("\n", "")
    assert call("segment", f"{far}/", "--model", model, "--out", tmp_path / "out", *FAST)[0] == 1

    documents = {"run.json", "quarantine.json", "collection.json"}
    results = {f"{name}/{file}" for name in ("one", "two") for file in (*OUTPUTS.values(), "report.json", "item.json")}
    assert {*store.names("out/")} == documents | results
    for name in ("one", "two"):
        for file in OUTPUTS.values():
            assert store.get(f"out/{name}/{file}") == (tmp_path / "out" / name / file).read_bytes(), f"{name}/{file}"
    near, away = (
        json.loads(text) for text in ((tmp_path / "out/one/report.json").read_text(), store.get("out/one/report.json"))
    )
    differing = {key for key in near if near[key] != away[key]}
    assert differing <= {"date", "folder", "seconds"}
    assert [*away["objects"]] == sorted(OUTPUTS.values())

    # what is read back of it: finished scenes, the catalog's forecast, the Collection
    code, stdout, _ = call("catalog", f"{far}/*.tif", "--model", model, "--out", out, *FAST)
    assert stdout.count(f"an equal result is in {out}/") == 2
    assert call("segment", f"{far}/*o*.tif", "--model", model, "--out", out, *FAST)[0] == 3
    assert statuses(store) == {"lost": "quarantined", "one": "skipped", "two": "skipped"}
    folder = tmp_path / "fetched"
    for name in store.names("out/"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(store.get(f"out/{name}"))
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
    assert [item.id for item in collection.get_items()] == ["one", "two"]
    assert {link.href for item in collection.get_items() for link in item.get_links("derived_from")} == {
        f"{far}/one.tif",
        f"{far}/two.tif",
    }
    assert not [*tmp_path.rglob("*.partial")], "the local disk is freed"


def test_a_run_killed_while_uploading_resumes_without_inference(
    store: Store, call: Call, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(name="town.tif")
    run = ["segment", str(scene), "--model", model, "--out", f"s3://{store.bucket}/out", *FAST]
    with subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *run], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as child:
        store.fail(f"PUT town/.partial/preview.png kill:{child.pid} 1")
        assert child.wait() == -9
    store.fail()
    left = store.names("out/")
    assert "town/.lock" in left
    assert "town/report.json" not in left
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.segment, "infer_scene", lambda *_, **__: pytest.fail("inferred twice"))
        assert call(*run)[0] == 0
    assert statuses(store) == {"town": "skipped"}
    monkeypatch.chdir(tmp_path)
    assert call(*run[: -len(FAST) - 1], tmp_path / "near", *FAST)[0] == 0
    for file in OUTPUTS.values():
        assert store.get(f"out/town/{file}") == (tmp_path / "near" / "town" / file).read_bytes()
    assert not [name for name in store.names("out/town/") if name.startswith(".")]


def test_a_run_that_failed_after_inference_resumes_from_there(
    store: Store, call: Call, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise TransientError("lost")

    work = tmp_path / "work"
    more = ["--set", f"run.work_dir={work}"]
    run = ["segment", make_scene(name="town.tif"), "--model", model, "--out", f"s3://{store.bucket}/out", *FAST, *more]
    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "run_outputs", lost)
        assert call(*run)[0] == 1
    assert [*work.glob("*/.town.partial")]
    infer = LocalExecutor.run_regions
    monkeypatch.setattr(
        LocalExecutor,
        "run_regions",
        lambda self, job, regions, model: pytest.fail("again") if regions else infer(self, job, regions, model),
    )
    assert call(*run)[0] == 0
    assert statuses(store) == {"town": "done"}
    assert {path.name for path in work.glob("*/*")} == {"owner"}


def test_what_is_made_of_results_in_a_store_is_what_is_made_of_those_in_a_folder(
    store: Store, call: Call, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged polygons, and new polygons of a mosaic that is there."""
    scenes = [make_scene(name=f"{name}.tif", seed=seed) for seed, name in enumerate(("one", "two"))]
    near, out = str(tmp_path / "out"), f"s3://{store.bucket}/out"
    for each in (near, out):
        code, _, stderr = call("segment", *scenes, "--model", model, "--out", each, "--merge", "gpkg", *FAST)
        assert code == 0
        assert f"{each}/polygons.gpkg: " in stderr.replace("\n", " ")
    assert store.get("out/polygons.gpkg") == (tmp_path / "out" / "polygons.gpkg").read_bytes()
    assert json.loads(store.get("out/merge.json")) == json.loads((tmp_path / "out" / "merge.json").read_text())
    assert json.loads(store.get("out/collection.json"))["assets"].keys() == {"polygons"}
    assert "(as it was): " in call("merge", out, "--into", "gpkg")[2].replace("\n", " ")
    assert call("merge", out, "--into", "parquet")[0] == 0
    assert {"polygons.parquet", "merge.json"} <= {*store.names("out/")}
    assert "polygons.gpkg" not in store.names("out/")

    monkeypatch.setattr(LocalExecutor, "run_regions", lambda *_, **__: pytest.fail("inferred again"))
    other = ["--set", "polygons.min_area_m2=2"]
    for each in (near, out):
        assert call("segment", *scenes, "--model", model, "--out", each, *FAST, *other)[0] == 0
    assert statuses(store) == {"one": "done", "two": "done"}
    for file in OUTPUTS.values():
        assert store.get(f"out/one/{file}") == (tmp_path / "out" / "one" / file).read_bytes()
    assert {path.name for path in tmp_path.glob("scenemill-*/*/*")} <= {"owner", ".fetched"}, "the disk is freed"


def test_a_scene_whose_bytes_are_damaged_goes_into_quarantine_though_it_is_remote(
    store: Store, call: Call, make_scene: MakeScene, model: str
) -> None:
    content = bytearray(make_scene(height=200, width=200, tiled=64, compress="deflate").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 999] = bytes(byte ^ 0x5A for byte in content[middle : middle + 999])
    run = [
        "segment",
        store.put("in/torn.tif", bytes(content)),
        "--model",
        model,
        "--out",
        f"s3://{store.bucket}/out",
        *FAST,
    ]
    assert (call(*run)[0], call(*run)[0]) == (1, 3)
    assert json.loads(store.get("out/quarantine.json"))["scenes"][0]["kind"] == "DamagedSceneError"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://nowhere-at-all/out", "there is no bucket nowhere-at-all"),
        ("s3:/bucket/out", "lost a slash"),
        ("s3://", "must read"),
    ],
)
def test_an_out_that_cannot_be_is_refused_before_any_work(
    store: Store, call: Call, make_scene: MakeScene, model: str, out: str, message: str
) -> None:
    code, _, stderr = call("segment", make_scene(name="a.tif"), "--model", model, "--out", out, *FAST)
    assert code == 2
    assert message in stderr.replace("\n", " ")
