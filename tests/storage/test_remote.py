"""Scenes in an S3 store: range reads, retries, versions and errors, on a local S3 server."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import MakeScene
from rasterio.windows import Window
from support.object_stores import Store

from pipeline.catalog.read import read_catalog
from pipeline.errors import AccessError, DamagedSceneError, SceneError, SettingsError, TransientError
from pipeline.model.card import ModelCard
from pipeline.results.publish import content_key
from pipeline.run.quarantine import is_data_error
from pipeline.scene.bands import BandFile
from pipeline.scene.describe import describe_scene, remote_fingerprint
from pipeline.scene.reader import SceneReader
from pipeline.scene.spec import SceneSource
from pipeline.segment import segment_scene
from pipeline.storage.location import Location, resolve_location
from pipeline.storage.remote import remote_version
from pipeline.storage.retries import RetryPolicy, is_transient

CARD = ModelCard(bands=("red",), classes=("bright",))
COARSE = Affine(1, 0, 500_000, 0, -1, 5_400_000)
PIXELS = np.random.default_rng(0).integers(1, 255, (1, 700, 900), np.uint8)


def red(address: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """All pixels of a scene."""
    scene = describe_scene(address)
    with SceneReader(scene) as reader:
        return reader.read(Window(0, 0, scene.grid.width, scene.grid.height))[0]


def signers(store: Store) -> set[str]:
    """Access keys that signed the requests for the scene."""
    return {line.split()[-1] for line in store.requests if line.startswith(f"GET /{store.bucket}/in/far.tif")}


@pytest.fixture
def far(store: Store, make_scene: MakeScene) -> str:
    """Address of a scene on the store, whose local twin is `far.tif` in the test's folder."""
    return store.put("in/far.tif", make_scene(PIXELS, name="far.tif", descriptions=["red"], tiled=256))


def test_a_scene_on_s3_gives_the_mosaic_of_the_local_one(store: Store, far: str, tmp_path: Path) -> None:
    reports = [
        segment_scene(place, tmp_path / name, predictor=lambda tiles: tiles / 255, card=CARD)
        for name, place in (("near", str(tmp_path / "far.tif")), ("far", far))
    ]
    near, away = (rasterio.open(Path(report.folder) / "probability.tif") for report in reports)
    with near, away:
        assert (near.read() == away.read()).all()
    assert reports[1].scene == "far"
    fetched = [line for line in store.requests if f"GET /{store.bucket}/in/far.tif" in line]
    assert len(fetched) > 2
    assert all("bytes=" in line for line in fetched), "the scene was fetched whole instead of by ranges"


def test_a_scene_of_several_files_on_s3_reads_like_the_local_one(
    store: Store, make_scene: MakeScene, tmp_path: Path
) -> None:
    """Bands of 0.5 and 1 m, each in its file; only what the model wants is fetched."""
    paths = [
        make_scene(bands=1, height=400, width=400, name="fine.tif", tiled=128, nodata=0),
        make_scene(bands=1, height=200, width=200, name="coarse.tif", tiled=128, transform=COARSE, seed=1),
        make_scene(bands=1, name="unwanted.tif"),
    ]
    for path in paths:
        store.put(path.name, path)
    card = ModelCard(bands=("nir", "red"), classes=("bright",))
    read = []
    for folder in (str(tmp_path), f"s3://{store.bucket}"):
        files = [
            BandFile(location=f"{folder}/{name}.tif", names=(band,), nodata=(None,), scales=(None,), offsets=(None,))
            for name, band in (("fine", "red"), ("unwanted", "blue"), ("coarse", "nir"))
        ]
        scene = describe_scene(files[0].location, card=card, scene_id="s", source=SceneSource(files=tuple(files)))
        with SceneReader(scene) as reader:
            read.append(reader.read(Window(30, 50, 300, 200)))
    np.testing.assert_array_equal(read[0][0], read[1][0])
    np.testing.assert_array_equal(read[0][1], read[1][1])
    assert all(file.fingerprint for file in scene.files)
    assert scene.modified_ns is None
    assert not any(f"GET /{store.bucket}/unwanted" in line for line in store.requests)


def band_files(store: Store, names: str) -> list[BandFile]:
    """Files of one band each, on the store or not."""
    return [
        BandFile(
            location=f"s3://{store.bucket}/{name}.tif", names=(name,), nodata=(None,), scales=(None,), offsets=(None,)
        )
        for name in names
    ]


def test_the_headers_of_a_scenes_files_are_read_side_by_side(
    store: Store, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)

    def wait_for_both(location: Location) -> str | None:
        together.wait(20)
        return remote_version(location)

    for seed, name in enumerate("abc"):
        store.put(f"{name}.tif", make_scene(bands=1, name=f"{name}.tif", seed=seed))
    card, files = ModelCard(bands=("c", "a", "b"), classes=("bright",)), band_files(store, "abc")
    alone = [describe_scene(file.location).files[0].fingerprint for file in files]
    monkeypatch.setattr("pipeline.storage.probe.remote_version", wait_for_both)
    scene = describe_scene(files[0].location, card=card, source=SceneSource(files=tuple(files)))
    assert scene.bands == ("c", "a", "b")
    assert [file.location.stem for file in scene.files] == ["a", "b", "c"]
    assert [file.fingerprint for file in scene.files] == alone


def test_of_several_files_that_are_not_there_the_first_is_named(
    store: Store, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the answer about the other came before."""
    answered = threading.Event()

    def answered_late(location: Location) -> str | None:
        if location.text.endswith("b.tif"):
            assert answered.wait(20)
        try:
            return remote_version(location)
        finally:
            if location.text.endswith("c.tif"):
                answered.set()

    store.put("a.tif", make_scene(bands=1, name="a.tif"))
    monkeypatch.setattr("pipeline.storage.probe.remote_version", answered_late)
    files, card = band_files(store, "abc"), ModelCard(bands=("a", "b", "c"), classes=("bright",))
    with pytest.raises(SceneError, match=r"b\.tif: nothing is there"):
        describe_scene(files[0].location, card=card, source=SceneSource(files=tuple(files)))


@pytest.mark.parametrize(
    "given",
    [
        {"AWS_ENDPOINT_URL_S3": "{endpoint}"},
        {"AWS_S3_ENDPOINT": "{host}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"},
        {"AWS_CONFIG_FILE": "{profile}", "AWS_PROFILE": "mill", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    ],
    ids=["variable", "gdal", "profile"],
)
def test_one_account_of_endpoint_and_credentials_is_enough_for_listing_and_reading(
    store: Store, far: str, given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "profile"
    profile.write_text(
        f"[profile mill]\nendpoint_url = {store.endpoint}\nregion = us-east-1\n"
        "aws_access_key_id = other\naws_secret_access_key = secret\n"
    )
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for name, text in given.items():
        value = text.format(endpoint=store.endpoint, host=store.endpoint.partition("://")[2], profile=profile)
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert (red(far) == PIXELS).all()
    signed = "other" if "AWS_PROFILE" in given else "key"
    assert signers(store) == {signed}


def test_what_is_public_is_asked_for_without_a_signature(
    store: Store, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.client.put_object_acl(Bucket=store.bucket, Key="in/far.tif", ACL="public-read")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert (red(far) == PIXELS).all()
    assert signers(store) == {"nobody"}


def test_every_request_names_the_payer(store: Store, far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    before = len(store.requests)
    assert (red(next(read_catalog([f"s3://{store.bucket}/in/"])).location) == PIXELS).all()
    requests = store.requests[before:]
    assert len(requests) > 3
    assert all(" requester " in line for line in requests)


# Versions


def test_the_fingerprint_of_a_remote_scene_follows_its_content(store: Store, make_scene: MakeScene) -> None:
    prints = []
    for seed in (0, 1):
        address = store.put("in/a.tif", make_scene(name="a.tif", seed=seed, height=300, width=300, tiled=128))
        prints.append(remote_fingerprint(resolve_location(address), ("GTiff",)))
        assert prints[-1] == describe_scene(address).files[0].fingerprint
    assert prints[0] != prints[1], "equal places of blocks, but other bytes"


def test_a_replaced_scene_is_read_again_by_the_same_process(store: Store, make_scene: MakeScene) -> None:
    for seed in (0, 1):
        path = make_scene(name="a.tif", seed=seed, height=300, width=300, tiled=128, bands=1)
        with rasterio.open(path) as dataset:
            assert (red(store.put("in/a.tif", path)) == dataset.read()).all()


def test_of_a_scene_that_is_replaced_while_it_is_read_no_result_is_made(
    store: Store, far: str, make_scene: MakeScene, tmp_path: Path
) -> None:
    other = make_scene(PIXELS, name="other.tif", descriptions=["red"], tiled=256, nodata=0)

    def replacing(tiles: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> object:
        store.put("in/far.tif", other)
        return tiles / 255

    with pytest.raises(TransientError, match=r"far\.tif: was replaced, changed or removed while it was read"):
        segment_scene(far, tmp_path / "out", predictor=replacing, card=CARD)
    assert not (tmp_path / "out" / "far").exists()
    assert segment_scene(far, tmp_path / "out", predictor=lambda tiles: tiles / 255, card=CARD).status == "done"


def test_a_signed_address_is_read_and_identified_by_its_server(
    store: Store, far: str, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store.client.generate_presigned_url("get_object", Params={"Bucket": store.bucket, "Key": "in/far.tif"})
    assert (red(address) == PIXELS).all()
    before = describe_scene(address)
    again = store.client.generate_presigned_url(
        "get_object", Params={"Bucket": store.bucket, "Key": "in/far.tif"}, ExpiresIn=99
    )
    assert again != address
    assert content_key(describe_scene(again), "m", {}) == content_key(before, "m", {})
    store.put("in/far.tif", make_scene(PIXELS + 1, name="other.tif", descriptions=["red"], tiled=256))
    assert describe_scene(address).files[0].fingerprint != before.files[0].fingerprint
    monkeypatch.setattr("pipeline.storage.remote.REQUEST_RETRIES", RetryPolicy((0.0, 0.0)))
    store.fail("GET /in/far.tif 503 2")
    assert describe_scene(address).grid == before.grid


# Errors


def test_a_store_that_is_busy_is_asked_again(store: Store, far: str) -> None:
    scene = describe_scene(far)
    store.fail("GET /in/far.tif 503 1", "GET /in/far.tif 429 1")
    with SceneReader(scene) as reader:
        assert (reader.read(Window(0, 0, 900, 700))[0] == PIXELS).all()
    assert sum(f"{store.bucket}/in/far.tif" in line for line in store.requests) > 3


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://{bucket}/in/none.tif", r"none\.tif: nothing is there; check the address"),
        ("s3://{bucket}/in", r"nothing is there; .*; a folder ends with a slash"),
        ("s3://nowhere-at-all/a.tif", "there is no bucket nowhere-at-all; check the address"),
    ],
)
def test_what_is_not_there_is_refused(store: Store, address: str, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        describe_scene(address.format(bucket=store.bucket))


def test_an_empty_object_is_refused(store: Store) -> None:
    with pytest.raises(DamagedSceneError, match="an empty file"):
        describe_scene(store.put("in/empty.tif", b""))


def test_denied_access_is_neither_retried_nor_an_error_of_the_scene(store: Store, far: str) -> None:
    store.fail("GET /in/far.tif 403 99")
    with pytest.raises(AccessError, match=r"far\.tif: the store refuses .*; check the credentials") as caught:
        describe_scene(far)
    assert not is_transient(caught.value)
    assert not is_data_error(caught.value)


def test_missing_credentials_are_reported_before_any_request(
    store: Store, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(AccessError, match="no usable credentials: none were found; set AWS_PROFILE"):
        describe_scene(far)


def test_an_endpoint_that_is_not_a_url_is_refused(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(SettingsError, match=r"the endpoint of the object store is not a URL: .*localhost:9000"):
        describe_scene(far)


def test_a_store_that_fails_after_all_retries_is_a_transient_error(
    store: Store, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store.fail("GET /in/far.tif 503 99")
    with pytest.raises(TransientError, match=r"the store failed .*; run again") as caught:
        describe_scene(far)
    assert is_transient(caught.value)
