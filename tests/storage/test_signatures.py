"""A vector file is opened only if it begins as its suffix says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.storage.signatures import FILE_SIGNATURES, check_signature


@pytest.mark.parametrize("content", [b"{}", b'  \n\t{"type": 1}', b"\xef\xbb\xbf{}", b"\xef\xbb\xbf \n{}"])
def test_geojson_may_begin_with_blanks_and_a_byte_order_mark(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.geojson").write_bytes(content)
    check_signature(tmp_path / "a.geojson")


@pytest.mark.parametrize("suffix", [*FILE_SIGNATURES])
def test_a_file_is_known_by_its_first_bytes_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(FILE_SIGNATURES[suffix] + b"anything")
    check_signature(path)
    for content in (b"", b" " + FILE_SIGNATURES[suffix] if FILE_SIGNATURES[suffix] != b"{" else b"[", b"<VRTDataset>"):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="does not begin like"):
            check_signature(path)
