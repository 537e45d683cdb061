"""Which text is a CRS that scenes can be placed by, and how one is shown."""

from __future__ import annotations

import pytest
from rasterio.crs import CRS

from pipeline.errors import SettingsError
from pipeline.grid.crs import is_on_earth, parse_crs, short_crs

LOCAL = 'ENGCRS["site",EDATUM["peg"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'


@pytest.mark.parametrize("text", ["EPSG:32633", "EPSG:4326", "OGC:CRS84", "+proj=laea +lat_0=10 +lon_0=20"])
def test_a_crs_of_the_earth_is_accepted_in_any_form(text: str) -> None:
    assert is_on_earth(parse_crs(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOCAL, "must be tied to the Earth"),
        ("nonsense", "must be a CRS that PROJ knows"),
        ("EPSG:1", "must be a CRS that PROJ knows"),
        ("", "must be a CRS that PROJ knows"),
    ],
)
def test_any_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_crs(text)


def test_a_crs_without_a_number_is_shown_by_its_beginning() -> None:
    assert (short_crs(None), short_crs(CRS.from_epsg(32633))) == ("no CRS", "EPSG:32633")
    shown = short_crs(CRS.from_wkt(LOCAL))
    assert (len(shown), shown[-3:]) == (43, "...")
    assert not is_on_earth(CRS.from_wkt(LOCAL))
    assert not is_on_earth(None)
