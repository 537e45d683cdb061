"""Secrets in addresses: whatever spelling their names have, and in addresses within addresses."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import without_secrets, without_signature

NAMES = ["token", "API_Key", "X-Amz-Signature", "x-goog-signature", "password", "sig", "access_token", "auth"]


@st.composite
def escaped(draw: st.DrawFn, text: str) -> str:
    """The text with any of its characters percent-encoded, as servers accept it."""
    return "".join(f"%{ord(each):02x}" if draw(st.booleans()) else each for each in text)


@given(st.sampled_from(NAMES).flatmap(lambda name: escaped(name)))
def test_a_secret_is_left_out_however_its_name_is_spelled(name: str) -> None:
    assert without_secrets(f"https://host/b.tif?page=2&{name}=7f3a") == "https://host/b.tif?page=2"


@given(st.sampled_from(["Signature", "X-Amz-Signature", "sig"]).flatmap(lambda name: escaped(name)))
def test_a_signature_does_not_change_which_file_an_address_is(name: str) -> None:
    assert without_signature(f"https://host/b.tif?page=2&{name}=7f3a") == "https://host/b.tif?page=2"


@pytest.mark.parametrize("secret", ["https://bob:pw@far/b.tif", "https://far/b.tif?token=7f3a"])
def test_an_address_within_an_address_holds_no_secret(secret: str) -> None:
    address = f"https://host/map?page=2&url={quote(secret, safe='')}"
    assert without_secrets(address) == "https://host/map?page=2"
    public = f"https://host/map?page=2&url={quote('https://far/b.tif', safe='')}"
    assert without_secrets(public) == public
