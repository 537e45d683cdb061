"""Settings are checked before any work; whatever is wrong is said with file, key, value and rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SegmentSpec, build_settings, load_settings
from pipeline.errors import SettingsError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.merge.spec import MergeSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.training.settings.spec import TrainSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def refusal(file: Path | None = None, *overrides: str, text: str | None = None) -> str:
    """The one paragraph that settings are refused with."""
    if text is not None and file is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings(SegmentSpec, file, overrides)
    return str(error.value)


def keys_of(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from keys_of(hint, (*path, name))
        else:
            yield (*path, name)


# Former names of keys


DEPRECATED = {"into": ("output", "parquet"), "prefer": ("priority", "finest"), "same": ("min_overlap", 0.25),
          "lone": ("unmatched", "keep")}  # fmt: skip


@pytest.mark.parametrize("deprecated", DEPRECATED)
def test_a_deprecated_key_is_accepted_in_files_overrides_sections_and_mappings(
    settings_file: Path, deprecated: str
) -> None:
    name, value = DEPRECATED[deprecated]
    expected = SegmentSpec(merge=MergeSpec(**{name: value}))  # type: ignore[arg-type]
    settings_file.write_text(f"merge: {{{deprecated}: {value}}}\n")
    assert load_settings(SegmentSpec, settings_file) == expected
    assert load_settings(SegmentSpec, None, [f"merge.{deprecated}={value}"]) == expected
    assert load_settings(SegmentSpec, None, merge={deprecated: value}) == expected
    assert build_settings(SegmentSpec, {"merge": {deprecated: value}}, place="a form") == expected
    assert load_settings(SegmentSpec, None, [f"merge.{name}={value}"]) == expected


def test_an_override_replaces_a_deprecated_key_of_the_file_and_the_other_way_round(settings_file: Path) -> None:
    settings_file.write_text("merge: {prefer: oldest, min_overlap: 0.25}\n")
    settings = load_settings(SegmentSpec, settings_file, ["merge.priority=finest", "merge.same=0.75"])
    assert settings.merge == MergeSpec(priority="finest", min_overlap=0.75)


def test_a_key_and_its_deprecated_name_together_are_refused(settings_file: Path) -> None:
    message = refusal(settings_file, text="merge: {output: gpkg, into: parquet}\n")
    assert message == f"{settings_file}: merge.into is the former name of merge.output; set only merge.output"


def test_an_error_message_names_the_current_key(settings_file: Path) -> None:
    message = refusal(settings_file, text="merge: {same: 2}\n")
    assert message == f"{settings_file}: merge.min_overlap must be above 0 and at most 1, not 2.0"


# What is right


def test_no_settings_mean_the_defaults() -> None:
    assert load_settings(SegmentSpec) == SegmentSpec()


def test_an_empty_file_and_empty_sections_mean_the_defaults(settings_file: Path) -> None:
    settings_file.write_text("# nothing yet\n")
    assert load_settings(SegmentSpec, settings_file) == SegmentSpec()
    settings_file.write_text("tiling:\nreading:\n")
    assert load_settings(SegmentSpec, settings_file) == SegmentSpec()


def test_the_defaults_written_as_yaml_read_back_as_the_defaults(settings_file: Path) -> None:
    plain = dataclasses.asdict(SegmentSpec())
    plain["reading"]["drivers"] = list(plain["reading"]["drivers"])
    settings_file.write_text(yaml.safe_dump(plain))
    assert load_settings(SegmentSpec, settings_file) == SegmentSpec()


def test_overrides_beat_the_file_and_sections_beat_both(settings_file: Path) -> None:
    settings_file.write_text("tiling: {tile_size: 256, overlap: 32}\nblend: crop\n")
    spec = load_settings(SegmentSpec, settings_file, ["tiling.overlap=64", "blend=exact"], tiling={"tile_size": 128})
    assert spec.tiling == TilingSpec(tile_size=128, overlap=64)
    assert spec.blend == "exact"


def test_the_last_of_two_overrides_wins() -> None:
    assert load_settings(SegmentSpec, None, ["blend=crop", "blend=average"]).blend == "average"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("tiling.tile_size=256", "tiling", "tile_size", 256),
        ("tiling.overlap=", "tiling", "overlap", None),  # back to the default
        ("reading.bands={red: 3, nir: 1}", "reading", "bands", {"red": 3, "nir": 1}),
        ("reading.drivers=[GTiff, VRT]", "reading", "drivers", ("GTiff", "VRT")),
        ("reading.nodata=-9999", "reading", "nodata", -9999.0),
        ("reading.nodata=1e-3", "reading", "nodata", 0.001),  # YAML 1.1 takes it for a word
        ("reading.resolution_m=model", "reading", "resolution_m", "model"),
        ("reading.resolution_m=0.3", "reading", "resolution_m", 0.3),
        ("reading.crs=EPSG:32633", "reading", "crs", "EPSG:32633"),
        ("reading.ignore_alpha=true", "reading", "ignore_alpha", True),
        ("polygons.connectivity=8", "polygons", "connectivity", 8),
        ("inference.device=[cuda:0, cuda:1]", "inference", "device", ("cuda:0", "cuda:1")),
        ("inference.device=cuda:0,cuda:1", "inference", "device", "cuda:0,cuda:1"),
        ("inference.augment=rotations", "inference", "augment", "rotations"),
        ("distribute.scheduler=tcp://10.0.0.5:8786", "distribute", "scheduler", "tcp://10.0.0.5:8786"),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(override: str, section: str, key: str, value: object) -> None:
    spec = load_settings(SegmentSpec, None, [override])
    assert getattr(getattr(spec, section), key) == value


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_the_rule_of_a_section_holds_wherever_its_keys_come_from(tile_size: int, overlap: int) -> None:
    overrides = [f"tiling.tile_size={tile_size}", f"tiling.overlap={overlap}"]
    if overlap < tile_size:
        assert load_settings(SegmentSpec, None, overrides).tiling.overlap == overlap
    else:
        assert "tiling.overlap must be" in refusal(None, *overrides)


# What is wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tilling: {tile_size: 256}", "unknown key tilling; did you mean tiling?"),
        ("tiling: {tilesize: 256}", "unknown key tiling.tilesize; did you mean tiling.tile_size?"),
        ("tile_size: 256", "unknown key tile_size; did you mean tiling.tile_size?"),
        ("reading: {min_area_m2: 5}", "unknown key reading.min_area_m2; did you mean polygons.min_area_m2?"),
        ("zebra: 1", "unknown key zebra; known keys are area, blend, catalog, distribute"),
        ("1: 2", "unknown key 1;"),
        ("tiling: 256", "tiling must be a section of keys, not 256"),
        ("- tiling", "must be a mapping of sections, not a list"),
        ("tiling: {tile_size: big}", "tiling.tile_size = 'big': Input should be a valid integer"),
        ("tiling: {tile_size: 256.5}", "tiling.tile_size = 256.5: Input should be a valid integer"),
        ("tiling: {tile_size: true}", "tiling.tile_size = True: Input should be a valid integer"),
        ("reading: {nodata: no}", "reading.nodata = False: Input should be a valid number"),
        ("reading: {resolution_m: yes}", "reading.resolution_m = True: Input should be a valid number"),
        ("reading: {bands: {red: true}}", "reading.bands = {'red': True}: Input should be a valid integer"),
        ("reading: {bands: [red]}", "reading.bands = ['red']: Input should be a valid dictionary"),
        ("reading: {drivers: GTiff}", "reading.drivers = 'GTiff': Input should be a valid tuple"),
        ("reading: {crs: 32633}", "reading.crs = 32633: Input should be a valid string"),
        ("reading: {ignore_alpha: maybe}", "reading.ignore_alpha = 'maybe': Input should be a valid boolean"),
        ("blend: cosine", "blend = 'cosine': Input should be 'hann', 'pyramid', 'average', 'crop' or 'exact'"),
        ("blend:", "blend = None: Input should be 'hann'"),
        ("tiling: {tile_size: 0}", "tiling.tile_size must be at least 1 px, not 0"),
        ("tiling: {overlap: 512}", "tiling.overlap must be at least 0 and smaller than tile_size (512 px), not 512"),
        ("polygons: {min_area_m2: -3}", "polygons.min_area_m2 must be >= 0, not -3"),
        ("polygons: {threshold: 1.5}", "polygons.threshold must be above 0 and at most 1, not 1.5"),
        ("reading: {resolution_m: .nan}", "reading.resolution_m must be over 0 m and finite, not nan"),
        ("reading: {crs: EPSG:0}", "reading.crs must be a CRS that PROJ knows"),
        ("inference: {batch_size: -1}", "inference.batch_size must be at least 0, not -1"),
        ("tiling: [", "invalid YAML:"),
        ("blend: !!python/object/apply:os.system [true]", "invalid YAML:"),
    ],
)
def test_a_wrong_file_is_refused_with_file_key_value_and_rule(settings_file: Path, text: str, expected: str) -> None:
    message = refusal(settings_file, text=text)
    assert message.startswith(f"{settings_file}: {expected}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tiling.tile_size", "--set tiling.tile_size: must read section.key=value, e.g."),
        ("=3", "--set =3: must read section.key=value"),
        ("tiling.tile=3", "--set tiling.tile=3: unknown key tiling.tile; did you mean tiling.tile_size?"),
        ("tile_size=3", "--set tile_size=3: unknown key tile_size; did you mean tiling.tile_size?"),
        ("tiling.tile_size=[", "--set tiling.tile_size=[: the value is invalid YAML"),
        ("tiling=3", "tiling must be a section of keys, not 3"),
        ("tiling.tile_size.deep=3", "tiling.tile_size = {'deep': 3}: Input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_refused(override: str, expected: str) -> None:
    assert expected in refusal(None, override)


def test_a_violated_rule_names_the_override_next_to_the_file(settings_file: Path) -> None:
    message = refusal(settings_file, "tiling.overlap=300", text="tiling: {tile_size: 256}")
    assert message.startswith(f"{settings_file} and --set: tiling.overlap must be")


def test_a_missing_or_unreadable_file_is_reported(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such settings file; check --config"
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: cannot be read" in refusal(tmp_path / "binary.yaml")


def test_keys_of_a_mapping_are_the_text_that_was_written(settings_file: Path) -> None:
    settings_file.write_text("classes: [cell]\nclass_map: {255: cell, 0: none, null: unlabelled}")
    assert load_settings(TrainSpec, settings_file).class_map == {"255": "cell", "0": "none", "null": "unlabelled"}
    with pytest.raises(SettingsError, match=r"class_map: YAML takes the key for true; put it in quotes"):
        load_settings(TrainSpec, None, ["classes=[roof]", "class_map={yes: roof}"])


def test_a_duplicate_key_is_refused(settings_file: Path) -> None:
    message = refusal(settings_file, text="tiling: {tile_size: 256}\nblend: crop\ntiling: {overlap: 8}\n")
    assert message.startswith(f"{settings_file}: invalid YAML: the key 'tiling' is there twice")


def test_anchors_and_merge_keys_of_yaml_work(settings_file: Path) -> None:
    settings_file.write_text("tiling: &t {tile_size: 256}\n")
    assert load_settings(SegmentSpec, settings_file).tiling.tile_size == 256
    settings_file.write_text("reading: &r {threads: 2}\ninference: {<<: {batch_size: 3}, device: cpu}\n")
    spec = load_settings(SegmentSpec, settings_file)
    assert (spec.inference.batch_size, spec.inference.device, spec.reading.threads) == (3, "cpu", 2)


def test_settings_of_one_section_can_be_built_alone() -> None:
    assert build_settings(ReadingSpec, {"nodata": 0}, place="api") == ReadingSpec(nodata=0.0)
    with pytest.raises(SettingsError, match=r"^api: unknown key nodta; did you mean nodata"):
        build_settings(ReadingSpec, {"nodta": 0}, place="api")


# What is written about it


@pytest.mark.parametrize("key", [".".join(path) for path in keys_of(SegmentSpec)])
def test_every_key_is_explained_in_the_configuration_page(key: str) -> None:
    page = ROOT / "docs" / "guide" / "configuration.md"
    if not page.exists():
        pytest.skip("docs/guide/configuration.md is not written yet")
    name = key.rpartition(".")[2]
    assert f"`{key}`" in page.read_text() or f"`{name}`" in page.read_text()


def test_every_field_is_explained_in_the_code() -> None:
    """A sentence stands under each setting, where it is defined."""
    for section in get_type_hints(SegmentSpec).values():
        if dataclasses.is_dataclass(section):
            module = __import__(section.__module__, fromlist=["_"])
            source = Path(str(module.__file__)).read_text()
            body = source[source.index(f"class {section.__name__}") :]
            for setting in dataclasses.fields(section):
                assert f"\n    {setting.name}: " in body
                assert body.split(f"\n    {setting.name}: ")[1].split("\n")[1].strip().startswith('"""')


def test_settings_that_never_change_the_result_are_not_in_its_identity() -> None:
    plain = SegmentSpec().result_settings()
    assert not {"distribute", "run"} & plain.keys()
    changed = load_settings(SegmentSpec, None, ["distribute.regions=7", "inference.batch_size=3", "reading.threads=5"])
    assert changed.result_settings() == plain
    assert load_settings(SegmentSpec, None, ["tiling.overlap=7"]).result_settings() != plain
