"""Names from files are text: no escape sequence, line break or hidden character of one reaches a reader raw."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from support.checkpoint_bytes import with_card
from support.exported_archive import pack, small_members, with_label
from support.models import write_checkpoint

from pipeline.catalog import read_catalog
from pipeline.cli.console import PrintableConsole
from pipeline.errors import ModelError, SceneError, SettingsError
from pipeline.model import ModelCard, describe_checkpoint, load_checkpoint, load_predictor
from pipeline.polygons.style import layer_style
from pipeline.text import escape_messages, markdown, name_fault, printable, printable_traceback
from pipeline.training import TrainSpec
from pipeline.training.artifacts import card_page

TITLE, CLEAR, CSI = "\x1b]0;owned\x07", "\x1b[2J", "\x9b31m"
OVERRIDE, ISOLATE, ZERO_WIDTH, SEPARATOR, HALF = "\u202e", "\u2066", "\u200b", "\u2028", "\ud800"
HOSTILE = f"roof{TITLE}{CLEAR}\r\nWARNING all is well{CSI}{OVERRIDE}{ISOLATE}{ZERO_WIDTH}{SEPARATOR}\u2029\x00\x7f"
IN_A_FILE_NAME = f"roof{CLEAR}\r\ndone    b{CSI}{OVERRIDE}{ZERO_WIDTH}{SEPARATOR}"

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What no output may hold; a line break is that of the output itself."""


def no_raw(text: str, name: str = "WARNING all is well") -> bool:
    """Whether a text has no character of `RAW`, and no line that a name forged."""
    return not RAW.search(text) and not any(line.startswith(name) for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"), ("a\nb\rc\td", r"a\nb\rc\td"), ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("\x85\x9b", r"\x85\x9b"), ("\u202a\u202e\u2066\u2069", r"\u202a\u202e\u2066\u2069"),
        ("\u200b\u200d\u2060\ufeff\xad", r"\u200b\u200d\u2060\ufeff\xad"), ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800\udcff", r"\ud800\udcff"), ("\U000e0041\ue000", r"\U000e0041\ue000"),
        ("façade 屋根 \U0001f3e0 a\\b", "façade 屋根 \U0001f3e0 a\\b"), ("1\xa0000\u202f000", "1\xa0000\u202f000"),
    ],
)  # fmt: skip
def test_characters_that_cannot_be_printed_are_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("name", [HOSTILE, "", "  ", "x" * 101, HALF, "a\n", 5, None])
def test_such_a_name_has_a_fault(name: object) -> None:
    assert name_fault(name)


@pytest.mark.parametrize("name", ["roof", "x" * 100, "屋根", "B8A (near infrared)", "a b"])
def test_a_name_for_people_has_none(name: str) -> None:
    assert name_fault(name) is None


def test_every_error_of_ours_is_one_line_of_printable_text() -> None:
    for kind in (SceneError, ModelError, SettingsError):
        assert no_raw(str(kind(f"{HOSTILE}: refused")))
        assert "\n" not in str(kind("a\nb"))
    assert no_raw(printable_traceback(SceneError(HOSTILE)))


# Terminal and logs


@pytest.fixture
def escaped_messages() -> Iterator[None]:
    """`escape_messages`, and the process as it was afterwards."""
    before = logging.getLogRecordFactory(), warnings.formatwarning
    escape_messages()
    yield
    logging.setLogRecordFactory(before[0])
    warnings.formatwarning = before[1]


def test_a_log_record_is_one_printable_line_for_every_handler(
    escaped_messages: None, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("rasterio").exception("%s: no band of that name", HOSTILE)
    (record,) = caplog.records
    assert no_raw(record.getMessage())
    assert "\n" not in record.getMessage()
    shown = logging.Formatter("%(levelname)s %(message)s").format(record)
    assert no_raw(shown, name="nothing begins so")
    assert "ValueError: roof" in shown


def test_a_warning_is_one_printable_line(escaped_messages: None) -> None:
    shown = warnings.formatwarning(HOSTILE, UserWarning, "a.py", 3)
    assert no_raw(shown)
    assert shown.count("\n") == 1


def test_records_of_the_flows_are_printable_too(escaped_messages: None) -> None:
    import importlib

    import flows

    logging.setLogRecordFactory(logging.LogRecord)
    importlib.reload(flows)
    record = logging.getLogRecordFactory()("prefect.flow_runs", 20, "a.py", 1, "scene %s", (HOSTILE,), None)
    assert no_raw(record.getMessage())


def test_records_of_workers_are_printable_too(escaped_messages: None) -> None:
    from pipeline.distribute.worker_tasks import dumps, loads

    logging.setLogRecordFactory(logging.LogRecord)
    assert loads(dumps(HOSTILE)) == (HOSTILE,)
    record = logging.getLogRecordFactory()("distributed.worker", 20, "a.py", 1, "scene %s", (HOSTILE,), None)
    assert no_raw(record.getMessage())


@pytest.mark.parametrize("of", [str, Text, Text.from_markup], ids=["text", "rich text", "markup"])
def test_the_console_shows_no_control_character_of_any_renderable(of: Callable[[str], Any], capsys) -> None:
    console = PrintableConsole(width=1000)
    console.print(of(HOSTILE), style="bold")
    assert not RAW.search(capsys.readouterr().out)


def test_a_terminal_of_another_encoding_gets_escapes(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        PrintableConsole(file=file).print("屋根 roof")
    assert (tmp_path / "out").read_text() == "\\u5c4b\\u6839 roof\n"


def test_options_that_are_file_names_reach_no_terminal(call) -> None:
    """A shell expands `*` to names of files, and one that begins with a dash is an option."""
    code, out, errors = call("segment", f"--{CLEAR}.tif", "--model", "m", "--out", "o")
    assert (code, no_raw(out + errors)) == (2, True)
    code, out, errors = call("--debug", "segment", f"{IN_A_FILE_NAME}.tif", "--model", f"{CLEAR}m", "--out", "o")
    assert (code, no_raw(out + errors)) == (2, True)


# Scenes


RAW_BYTES = {"Q1": "\x1b[", "Q2Q2": "\u202e\n", "Q3": "\x9b"}
"""What is written by GDAL -> what its XML writer would leave out, of the same length in UTF-8."""


def with_raw_bytes(path: Path) -> Path:
    """The file with control characters that GDAL does not write, and reads."""
    content = path.read_bytes()
    for written, raw in RAW_BYTES.items():
        assert len(written) == len(raw.encode())
        content = content.replace(written.encode(), raw.encode())
    path.write_bytes(content)
    return path


def test_bands_are_shown_with_escapes_and_found_by_name(make_scene, model: str, tmp_path: Path, call) -> None:
    name = "roofQ12JQ2Q2WARNING all is wellQ331m\r\n\u2066\u200b\u2028"
    colours = ["red", "green", "blue", "undefined"]
    scene = with_raw_bytes(make_scene(bands=4, descriptions=[*colours[:3], name], colorinterp=colours))
    odd = with_raw_bytes(make_scene(bands=3, descriptions=[f"{name}{n}" for n in range(3)], name="odd.tif"))
    for arguments in (["inspect", scene, "--model", model], ["inspect", odd, "--model", model]):
        _, out, errors = call(*arguments)
        assert no_raw(out + errors)
        assert r"roof\x1b[2J\u202e\nWARNING" in out
    code, out, errors = call("segment", scene, odd, "--model", model, "--out", tmp_path / "out")
    assert code == 1, "odd.tif offers no red, green and blue"
    assert no_raw(out + errors)
    records = json.loads((tmp_path / "out" / "run.json").read_text())["scenes"]
    assert {entry["status"] for entry in records} == {"done", "failed"}
    for path in (tmp_path / "out").rglob("*.json"):
        assert not RAW.search(path.read_text(encoding="utf-8").replace("\t", "")), path


def test_a_file_name_of_escapes_is_processed_and_shown_with_escapes(
    make_scene, model: str, tmp_path: Path, call
) -> None:
    scene = make_scene(name=f"scenes/{IN_A_FILE_NAME}.tif", descriptions=["red", "green", "blue"])
    for arguments in (["catalog", scene], ["inspect", scene], ["segment", scene, "--model", model, "--out", "out"]):
        code, out, errors = call(*(tmp_path / "out" if each == "out" else each for each in arguments))
        assert (code, no_raw(out + errors, name="done    b")) == (0, True)
    for path in [*(tmp_path / "out").rglob("*.json"), *(tmp_path / "out").rglob("*.html")]:
        assert not RAW.search(path.read_text(encoding="utf-8")), path
    assert all(printable(path.name) == path.name for path in (tmp_path / "out").rglob("*"))


def test_a_file_name_that_is_not_utf8_is_refused_and_the_others_run(
    make_scene, model: str, tmp_path: Path, call
) -> None:
    good = make_scene(name="scenes/good.tif", descriptions=["red", "green", "blue"])
    os.rename(make_scene(name="scenes/x.tif"), os.fsencode(good.parent) + b"/caf\xe9.tif")
    code, out, errors = call("segment", good.parent, "--model", model, "--out", tmp_path / "out")
    assert code == 1
    assert no_raw(out + errors)
    assert r"caf\udce9.tif: the name is not UTF-8, which GDAL needs; rename it" in errors
    records = json.loads((tmp_path / "out" / "run.json").read_text())["scenes"]
    assert {entry["scene"]: entry["status"] for entry in records} == {"good": "done", "caf_": "failed"}
    for arguments in (["catalog", good.parent], ["inspect", good.parent / "caf\udce9.tif"]):
        code, out, errors = call(*arguments)
        assert (code, no_raw(out + errors), "rename it" in out + errors) == (1, True, True), arguments


def test_a_row_of_escapes_is_shown_with_escapes(tmp_path: Path) -> None:
    (tmp_path / "scenes.csv").write_text(f'path,id\n"{CLEAR}\nx.tif",{OVERRIDE}\n', encoding="utf-8")
    (entry,) = read_catalog([tmp_path / "scenes.csv"])
    assert no_raw(f"{entry.id}{entry.location}{entry.refused}")


# Cards of models


BAD_NAMES: dict[str, list[Any]] = {
    "unprintable": [HOSTILE], "a line break": ["roof\n"], "half a surrogate pair": [HALF], "empty": [""],
    "spaces": ["  "], "twice": ["roof", "roof"], "very long": ["x" * 101], "200,000 characters": ["x" * 200_000],
    "a number": [5], "a list": [["roof"]], "no list": ["roof", None], "bidirectional": [OVERRIDE + "foor"],
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("good") / "model.safetensors")


@pytest.mark.parametrize("case", BAD_NAMES)
@pytest.mark.parametrize("key", ["bands", "classes"])
def test_a_card_of_such_names_is_refused_when_it_is_loaded(
    case: str, key: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_card(checkpoint, **{key: BAD_NAMES[case]}))
    for read in (load_checkpoint, describe_checkpoint, load_predictor):
        with pytest.raises(ModelError, match=r"model\.safetensors: ") as refused:
            read(path)
        assert no_raw(str(refused.value))
        assert len(str(refused.value)) < 600
    imported = tmp_path / "model.pt2"
    card = json.dumps({"bands": ["red"], "classes": ["roof"]} | {key: BAD_NAMES[case]})
    imported.write_bytes(pack(with_label(small_members(), card)))
    with pytest.raises(ModelError, match=r"model\.pt2: "):
        load_predictor(imported)


@pytest.mark.parametrize("names", [(HOSTILE,), ("",), ("a", "a"), ("x" * 101,), (HALF,)])
def test_a_training_with_such_classes_is_refused_before_it_starts(names: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="classes"):
        TrainSpec(classes=names)
    with pytest.raises(SettingsError, match="bands"):
        TrainSpec(bands=names)


def test_facts_of_a_training_are_text_that_can_be_written() -> None:
    with pytest.raises(ModelError, match="half of a surrogate pair"):
        ModelCard(bands=("red",), classes=("roof",), training={"note": HALF})


# Pages and styles


def test_a_style_is_well_formed_xml_whatever_the_classes() -> None:
    style = layer_style({1: HOSTILE, 2: f'<&">{HALF}', 3: "roof"})
    root = ET.fromstring(style.partition("\n")[2])
    assert len(root.findall(".//category")) == 3
    assert no_raw(style)


def test_markdown_of_a_name_is_text() -> None:
    name = f"[a](javascript:x) <script> | `b` **c** ![d](e) &#27; # e\n\n# f{CLEAR}"
    shown = markdown(name)
    assert no_raw(shown)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[<>`*|&#\[\]]", shown)


def test_the_page_of_a_card_has_no_raw_text_of_its_facts() -> None:
    facts = {
        "scenes": [HOSTILE, "<script>alert(1)</script>"], "class_share": {HOSTILE: 0.001}, "labels": {HOSTILE: 3},
        "versions": {HOSTILE: f"{HOSTILE}|<b>"}, "settings": {"classes": [f"a```\n<script>{HOSTILE}"]},
        "validation": {"scenes": [HOSTILE], "kind": HOSTILE}, "metrics": {"validation": {"iou": 0.5}},
    }  # fmt: skip
    page = card_page(ModelCard(bands=("red",), classes=("roof",), training=facts), checkpoint=f"{HOSTILE}.safetensors")
    assert no_raw(page)
    outside_code = re.sub(r"```.*?```|`[^`]*`", "", page, flags=re.DOTALL)
    assert "<script>" not in outside_code
    assert page.count("```") % 2 == 0


def test_the_page_of_an_evaluation_shows_escapes() -> None:
    from importlib.resources import files

    from pipeline.evaluation.page import PAGE, page_environment

    template = page_environment().from_string("<p>{{ name }}</p>{{ count }}{{ lines }}")
    shown = template.render(name=f"{HOSTILE}<script>", count=1234, lines="a\nb")
    assert not RAW.search(shown)
    assert shown.endswith("&lt;script&gt;</p>1234a\nb")
    assert "|safe" not in (files("pipeline") / "data" / PAGE).read_text(encoding="utf-8")


def test_artifacts_of_prefect_show_escapes() -> None:
    from flows.artifact_scene import scene_markdown
    from flows.artifacts import _row
    from pipeline.results import OutputFiles, SceneReport

    outputs = OutputFiles(names={"mask": "mask.tif", "polygons": "polygons.gpkg"})
    report = SceneReport(
        scene=f"{HOSTILE}<script>|", location=HOSTILE, status="done", outputs=outputs, reason=HOSTILE,
        folder=f"s3://bucket/a b>{CLEAR})[x](y)",
    )  # fmt: skip
    page = scene_markdown(report)
    assert no_raw(page)
    assert "<script>" not in page
    assert len(re.findall(r"\]\(<[^<>\s]*>\)", page)) == len(report.outputs.names)
    assert no_raw("".join(map(str, _row(report).values())))
