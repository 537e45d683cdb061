"""What tests share: small scenes, a model, the command called here, and the folder of shared real data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import settings as hypothesis_settings
from numpy.typing import ArrayLike, DTypeLike, NDArray
from rasterio.enums import ColorInterp

from pipeline.storage import allow_drivers

PLUGINS = ("labelled", "clusters", "hostile_rasters", "object_stores", "prefect_server", "tmp_disk")
pytest_plugins = tuple(f"support.{name}" for name in PLUGINS)

hypothesis_settings.register_profile("here", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("here")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

Call = Callable[..., tuple[int, str, str]]
"""Arguments of the command -> its exit code, and what it wrote to stdout and stderr; see `call`."""


class MakeScene(Protocol):
    """Writes a GeoTIFF into the test's folder and returns its path; see `make_scene`."""

    def __call__(
        self,
        pixels: ArrayLike | None = None,
        *,
        name: str | None = None,
        bands: int = 3,
        height: int = 40,
        width: int = 50,
        dtype: DTypeLike = "uint8",
        seed: int = 0,
        crs: str | None = "EPSG:32633",
        transform: Affine | None = None,
        nodata: float | None = None,
        mask: ArrayLike | None = None,
        alpha: ArrayLike | None = None,
        descriptions: Sequence[str] | None = None,
        colorinterp: Sequence[str] | None = None,
        scales: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        tiled: int | None = None,
        driver: str = "GTiff",
        **options: object,
    ) -> Path: ...


@pytest.fixture
def make_scene(tmp_path: Path) -> MakeScene:
    """Factory of small scenes; every argument has a default, so a test names only what it is about.

    `pixels` is `(bands, height, width)` or `(height, width)` and decides size and dtype; without it, seeded
    random values fill the dtype's range (floats: 0..1) and avoid `nodata`. `mask` and `alpha` are
    `(height, width)`, True = valid: `mask` becomes an internal dataset mask, `alpha` an extra last band.
    `tiled` is the block size; without it, rows are strips. Half a metre per pixel in UTM by default.
    """
    counter = itertools.count()

    def make(
        pixels: ArrayLike | None = None,
        *,
        name: str | None = None,
        bands: int = 3,
        height: int = 40,
        width: int = 50,
        dtype: DTypeLike = "uint8",
        seed: int = 0,
        crs: str | None = "EPSG:32633",
        transform: Affine | None = None,
        nodata: float | None = None,
        mask: ArrayLike | None = None,
        alpha: ArrayLike | None = None,
        descriptions: Sequence[str] | None = None,
        colorinterp: Sequence[str] | None = None,
        scales: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        tiled: int | None = None,
        driver: str = "GTiff",
        **options: object,
    ) -> Path:
        data = _random_pixels((bands, height, width), np.dtype(dtype), nodata, seed) if pixels is None else pixels
        data = np.atleast_3d(np.asarray(data).T).T
        if alpha is not None:
            opaque = np.iinfo(data.dtype).max if data.dtype.kind in "iu" else 1
            data = np.concatenate([data, np.where(np.asarray(alpha, bool), opaque, 0)[None].astype(data.dtype)])
        path = tmp_path / (name or f"scene{next(counter)}.tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = _profile(data, crs, transform, nodata, tiled) | options
        allow_drivers(driver)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", driver=driver, **profile) as dataset:
            if colorinterp is not None or alpha is not None:
                names = list(colorinterp or ["undefined"] * len(data))
                if alpha is not None:
                    names = [*names[: len(data) - 1], "alpha"]
                dataset.colorinterp = [ColorInterp[each] for each in names]
            dataset.write(data)
            for index, text in enumerate(descriptions or (), start=1):
                dataset.set_band_description(index, text)
            if mask is not None:
                dataset.write_mask(np.asarray(mask, bool))
            if scales is not None:
                dataset.scales = tuple(scales)
            if offsets is not None:
                dataset.offsets = tuple(offsets)
        return path

    return make


def _random_pixels(
    shape: tuple[int, int, int], dtype: np.dtype[np.generic], nodata: float | None, seed: int
) -> NDArray[np.generic]:
    generator = np.random.default_rng(seed)
    if dtype.kind not in "iu":
        return generator.random(shape).astype(dtype)
    info = np.iinfo(dtype)
    low, high = max(int(info.min), -30_000), min(int(info.max), 30_000)
    values = generator.integers(low, high, size=shape, endpoint=True).astype(dtype)
    if nodata is not None:
        values[values == nodata] = high if nodata != high else high - 1
    return values


def _profile(
    data: NDArray[np.generic], crs: str | None, transform: Affine | None, nodata: float | None, tiled: int | None
) -> dict[str, object]:
    profile: dict[str, object] = {
        "count": data.shape[0],
        "height": data.shape[1],
        "width": data.shape[2],
        "dtype": data.dtype,
        "nodata": nodata,
        "transform": transform or Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
    }
    if crs is not None:
        profile["crs"] = crs
    if tiled is not None:
        profile |= {"tiled": True, "blockxsize": tiled, "blockysize": tiled}
    return profile


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained checkpoint, which no test changes."""
    from support.models import write_checkpoint

    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command here; `(exit code, stdout, stderr)`."""
    from pipeline.cli import app as cli

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return done.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared real imagery beside the repository; tests that need it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared real data (../shared/data) is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cuda() -> str:
    """The CUDA device; tests that need one are skipped where there is none."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return "cuda"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` ask for the device, so that they are skipped where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and isinstance(item, pytest.Function):
            item.fixturenames = [*item.fixturenames, "cuda"]  # the list is that of all parameters of the test
