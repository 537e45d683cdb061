"""Users, passwords, signatures and tokens of addresses are in no file, message or log, however a scene ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from support.range_server import requests_of, serving

from flows.run_names import brief
from pipeline.catalog.entry import CatalogEntry
from pipeline.cli import main
from pipeline.errors import MAX_MESSAGE, SceneError
from pipeline.storage.location import resolve_location
from pipeline.text import escape_messages, without_secrets

SECRET = "hunter2QWERTY"
QUERIES = {
    "aws": f"X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA{SECRET}&X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}",
    "azure": f"sv=2024&se=2026&sr=b&sp=r&sig={SECRET}",
    "google": f"GoogleAccessId=me&Expires=1&Signature={SECRET}",
    "cloudfront": f"Policy={SECRET}&Signature={SECRET}&Key-Pair-Id={SECRET}",
    "token": f"year=2026&access_token={SECRET}",
    "key": f"year=2026&apikey={SECRET}&subscription-key={SECRET}",
    "encoded": f"%74oken={SECRET}&next=https%3A%2F%2Fhost%2Fa.tif%3Fsig%3D{SECRET}",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize(
    "form", ["{}", "cannot reach {}: timeout", "url: /a.tif?{query} (Caused by {})", "'{}', \"{}\""]
)
def test_a_secret_is_left_out_of_an_address_and_of_a_text_with_it(query: str, form: str) -> None:
    address = f"https://bob:{SECRET}@host.example/a.tif?{query}#token={SECRET}"
    shown = without_secrets(form.format(*[address] * form.count("{}"), query=query))
    assert SECRET not in shown
    assert "host.example/a.tif" in shown
    assert ("year=2026" in shown) == ("year" in query)
    assert shown.endswith(": timeout") == form.endswith(": timeout")


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.tif?year=2026&page=2#top",
        "https://host/v1?collections=a,b",
        "s3://bucket/a.tif",
        "is it a STAC document? name=value; see a@b.example",
        "set AWS_ACCESS_KEY_ID=... and run again",
        "https://host/a.tif?author=me&st=4&se=5",
        "https://host/what?",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


@given(st.text(st.sampled_from("abk=&?#;:/@%3D token sig"), max_size=60))
def test_redaction_is_idempotent(text: str) -> None:
    assert without_secrets(without_secrets(text)) == without_secrets(text)


def test_redaction_takes_linear_time() -> None:
    for text in (
        "?" * 1_000_000,
        "://" * 300_000,
        "?a=" * 300_000,
        "https://" + "a" * 1_000_000,
        "%" * 1_000_000 + "?%3D",
    ):
        without_secrets(text)


def test_an_error_shows_no_secret_and_no_endless_value() -> None:
    error = SceneError(f"https://host/a.tif?sig={SECRET}: {'x' * 1_000_000}")
    assert SECRET not in str(error) + repr(error)
    assert len(str(error)) < MAX_MESSAGE + 100


def test_a_location_as_text_has_no_secret() -> None:
    location = resolve_location(f"https://host/a.tif?sig={SECRET}")
    assert SECRET not in f"{location} {location!r} {[location]}"
    assert SECRET in location.text
    assert SECRET in location.gdal_path


@pytest.mark.parametrize("password", ["hunter2", "hun'ter2", 'hun"ter2', "hun ter2", "hun<ter2"])
def test_the_refusal_of_an_address_with_a_password_does_not_show_it(password: str) -> None:
    with pytest.raises(SceneError, match=r"^https://host/a\.tif: holds a user name or password") as refused:
        resolve_location(f"https://bob:{password}@host/a.tif")
    assert "ter2" not in str(refused.value)


def test_a_quotation_mark_does_not_end_the_password_of_an_address() -> None:
    assert without_secrets("https://bob:hun'ter2@host/a.tif") == "https://host/a.tif"
    assert without_secrets("https://host/a.tif and 'b@c'") == "https://host/a.tif and 'b@c'"


def test_a_flow_run_is_named_without_secrets() -> None:
    assert brief([f"https://host/a.tif?sig={SECRET}"]) == "https://host/a.tif"


def test_logged_lines_and_tracebacks_of_libraries_have_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    escape_messages()
    try:
        raise OSError(f"url: /a.tif?sig={SECRET} (Caused by https://host/?token={SECRET})")
    except OSError:
        logging.getLogger("urllib3").exception("GET https://host/a.tif?sig=%s", SECRET)
    assert "Traceback" in caplog.text
    assert SECRET not in caplog.text


# Whole runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def texts_of(folder: Path) -> dict[str, bytes]:
    """The content and the name of every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def signed_item(name: str, href: str) -> dict[str, Any]:
    """A STAC Item whose links and asset are signed."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2026-05-01T00:00:00Z"},
        "links": [{"rel": "self", "href": f"https://host.example/{name}.json?token={SECRET}"}],
        "assets": {"data": {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }


def test_no_run_writes_or_prints_a_secret_however_its_scenes_end(
    make_scene: MakeScene, model: str, folder: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = make_scene(bands=3, height=300, width=300, tiled=64, colorinterp=["red", "green", "blue"]).read_bytes()
    for name, content in {
        "good": whole,
        "cut": whole[: len(whole) // 2],
        "page": b"<!DOCTYPE html><p>Sign in",
        "gone": whole,
        "moved": whole,
        "refused": whole,
        "later": whole,
        "listed": whole,
    }.items():
        (folder / f"{name}.tif").write_bytes(content)
    (folder / "redirects.json").write_text(
        json.dumps(
            {
                "any:/gone.tif": 404,
                "any:/refused.tif": 403,
                "any:/moved.tif": f"http://127.0.0.1:9/inner.tif?token={SECRET}",
                "/later.tif": f"ftp://127.0.0.1:9/later.tif?token={SECRET}",
            }
        )
    )
    names = ("good", "cut", "page", "gone", "moved", "refused", "later")
    addresses = [f"{server}/{name}.tif?{query}" for name, query in zip(names, QUERIES.values(), strict=True)]
    rows = [*addresses, f"http://bob:{SECRET}@127.0.0.1:9/user.tif", f"ftp://host/scheme.tif?sig={SECRET}"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows]) + "\n")
    listed = signed_item("listed", f"{server}/listed.tif?{QUERIES['azure']}")
    items = {"type": "FeatureCollection", "features": [listed]}
    (tmp_path / "items.json").write_text(json.dumps(items))

    out = tmp_path / "out"
    arguments = [tmp_path / "list.csv", tmp_path / "items.json", "--model", model]
    arguments += ["--out", out, "--set", "run.retries=0", "--set", "tiling.tile_size=256"]
    for command in (["segment", "--debug"], ["segment"], ["catalog"]):
        with pytest.raises(SystemExit):
            main([*command, *map(str, arguments)])
    shown = "".join(capfd.readouterr())
    assert SECRET in "".join(requests_of(folder)), "the addresses were opened without their secrets"

    run = json.loads((out / "run.json").read_text())
    assert {row["scene"] for row in run["scenes"] if row["status"] in ("done", "skipped")} == {"good", "listed"}
    assert len(run["scenes"]) == len(rows) + 1
    assert run["counts"]["quarantined"] >= 1
    links = json.loads((out / "listed" / "item.json").read_text())["links"]
    assert [link["href"] for link in links if link["rel"] == "derived_from"] == ["https://host.example/listed.json"]
    assert SECRET not in shown, [line for line in shown.splitlines() if SECRET in line]
    leaks = [name for name, content in texts_of(out).items() if SECRET.encode() in content or SECRET in name]
    assert leaks == []


def test_the_key_of_an_entry_and_its_text_have_no_secret() -> None:
    entry = CatalogEntry(id="a", location=f"https://host/a.tif?sig={SECRET}")
    assert entry.shown == "https://host/a.tif"
