"""One handle per thread, and a small cache for good."""

from __future__ import annotations

import threading
from pathlib import Path

import rasterio
from conftest import MakeScene
from rasterio.env import get_gdal_config

from pipeline.storage.gdal import CACHE_BYTES, ThreadHandles


def test_every_thread_has_a_handle_of_its_own_and_keeps_it(make_scene: MakeScene) -> None:
    path = make_scene()
    handles = ThreadHandles(lambda: rasterio.open(path))
    seen: list[int] = []

    def ask() -> None:
        seen.append(id(handles.get()))
        seen.append(id(handles.get()))

    others = [threading.Thread(target=ask) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    ask()
    assert len(set(seen)) == 3
    mine = handles.get()
    handles.close()
    assert mine.closed


def test_the_block_cache_stays_small_after_any_environment(make_scene: MakeScene) -> None:
    path = make_scene()
    with rasterio.Env():
        ThreadHandles(lambda: rasterio.open(Path(path)))
    with rasterio.Env(), rasterio.open(path) as dataset:
        dataset.read()
    with rasterio.Env():
        assert int(get_gdal_config("GDAL_CACHEMAX")) == CACHE_BYTES
