"""Rendering of pixels as a sensor would deliver them: surfaces, shadows, trees, cloud, blur, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.training.synthetic.light import AMBIENT, Cloud, Floats, Metres, Noise, Sun
from pipeline.training.synthetic.materials import CROWNS
from pipeline.training.synthetic.paint import PIXEL_M, Table, burn
from pipeline.training.synthetic.scenery import Scenery, Trees

STRIP_ROWS = 256
"""Rows rendered at a time; the noise is seeded per strip, so another value changes the pixels."""
HALO = 1
"""Rows around a strip that the blur needs."""
SHADE = np.array([0.28, 0.33, 0.42, 0.24], np.float32)
"""Relative light in a full shadow, per band: skylight is blue."""
PATH = np.array([0.012, 0.019, 0.030, 0.005], np.float32)
"""Path radiance: reflectance that the atmosphere adds, per band."""
CLOUD_WHITE = np.array([0.60, 0.61, 0.63, 0.58], np.float32)
"""Reflectance of dense cloud, per band."""
CLOUD_HEIGHT_M = 190.0
"""Height of the cloud above the ground."""
POINT_SPREAD = (0.22, 0.56, 0.22)
"""Point spread of the optics: a separable kernel, sigma about 0.66 px."""


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Illumination of one scene, and the noise of its textures."""

    sun: Sun
    cloud: Cloud
    texture: Noise
    """Varies surface colours between dark and light."""
    broad: Noise
    """Low-frequency variation of brightness over the scene."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Raster layers of a scene, each `(height, width)`."""

    ids: NDArray[np.int32]
    """Shape number in the painting."""
    crowns: NDArray[np.int32]
    """Tree number + 1, 0 where no crown is."""
    shadow: NDArray[np.bool_]
    """True in the shadow of a building or a tree."""
    table: Table
    """Materials by shape number."""
    trees: Trees


def draw_sky(generator: np.random.Generator, sun: Sun, cloud: Cloud) -> Sky:
    """Draw the noise fields of a scene."""
    texture = Noise(generator, ((120.0, 0.5), (28.0, 0.8), (7.0, 0.8), (1.8, 0.6)))
    return Sky(sun=sun, cloud=cloud, texture=texture, broad=Noise(generator, ((500.0, 1.0),)))


def layer(scenery: Scenery, sun: Sun) -> Layers:
    """Rasterize crowns and shadows in addition to the painting."""
    height, width = scenery.ids.shape
    trees = scenery.trees
    crowns = shapely.buffer(shapely.points(trees[:, :2]), trees[:, 2] * 1.1, quad_segs=3)
    offsets = [sun.shadow(1.2 * radius) for radius in trees[:, 2]]
    cast = shapely.buffer(shapely.points(trees[:, :2] + np.array(offsets).reshape(-1, 2)), trees[:, 2], quad_segs=2)
    shadow = burn([building.shadow for building in scenery.buildings], height, width) > 0
    shadow &= scenery.ids < scenery.first_roof
    shadow |= burn(list(cast), height, width) > 0
    return Layers(
        ids=scenery.ids,
        crowns=burn(list(crowns), height, width),
        shadow=shadow,
        table=scenery.painting.table(),
        trees=trees,
    )


def render(layers: Layers, sky: Sky, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """`10000 * reflectance` plus noise, at least 1, `(4, height, width)`; and which pixels show a tree crown."""
    height, width = layers.ids.shape
    pixels = np.empty((4, height, width), np.uint16)
    crowns_on_top = np.zeros((height, width), bool)
    for top in range(0, height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, height)
        generator = np.random.default_rng((seed, top))
        rows = np.clip(np.arange(top - HALO, bottom + HALO), 0, height - 1)
        strip, crown = _strip(layers, sky, rows, generator)
        crowns_on_top[top:bottom] = crown[HALO:-HALO]
        for band, reflectance in enumerate(strip):
            pixels[band, top:bottom] = _expose(_blur(reflectance), generator)
    return pixels, crowns_on_top


def _strip(
    layers: Layers, sky: Sky, rows: NDArray[np.intp], generator: np.random.Generator
) -> tuple[list[Floats], NDArray[np.bool_]]:
    """Top-of-atmosphere reflectance of some rows, one array per band; and which pixels show a crown."""
    ys, xs = (rows + 0.5) * PIXEL_M, (np.arange(layers.ids.shape[1]) + 0.5) * PIXEL_M
    ids, table = layers.ids[rows], layers.table
    texture = sky.texture.at(ys, xs)
    tone = np.clip(0.5 + table.contrast[ids] * texture, 0, 1)
    white = generator.standard_normal(ids.shape, dtype=np.float32)
    light = _texture(table, ids, white, ys, xs) * (1 + 0.035 * sky.broad.at(ys, xs))
    shadow = layers.shadow[rows].astype(np.float32)
    crown, crown_light, species = _crowns(layers, sky.sun, rows, texture, white)
    # Crowns rise above the shadows on the ground and have their own light.
    shadow[crown] = 0
    light[crown] = crown_light
    opacity, dimming = _cloud(sky, ys, xs)
    strip = []
    for band in range(4):
        surface = table.dark[ids, band] + table.span[ids, band] * tone
        surface[crown] = np.array([colour[band] for colour in CROWNS], np.float32)[species]
        # Shadow and cloud block direct sunlight; the share `SHADE` of the light remains.
        surface *= light * (1 - shadow * (1 - SHADE[band])) * (1 - dimming * (1 - SHADE[band]))
        surface += PATH[band]
        surface += opacity * (CLOUD_WHITE[band] - surface)
        strip.append(surface)
    crowns_on_top = np.zeros(ids.shape, bool)
    crowns_on_top[crown] = True
    return strip, crowns_on_top


def _texture(table: Table, ids: NDArray[np.int32], white: Floats, ys: Metres, xs: Metres) -> Floats:
    """Relative brightness around 1: grain everywhere, stripes where the material has them."""
    texture = 1 + table.grain[ids] * white
    striped = np.nonzero(table.stripe_depth[ids])
    which = ids[striped]
    x, y = xs.astype(np.float32)[striped[1]], ys.astype(np.float32)[striped[0]]
    phase = table.wave_x[which] * x + table.wave_y[which] * y
    texture[striped] += table.stripe_depth[which] * np.sin(phase)
    return texture.astype(np.float32)


def _crowns(
    layers: Layers, sun: Sun, rows: NDArray[np.intp], texture: Floats, white: Floats
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], Floats, NDArray[np.intp]]:
    """Pixels covered by round, ragged crowns, `(rows, cols)`, with the light and the species of each."""
    at_row, at_col = np.nonzero(layers.crowns[rows])
    tree = layers.trees[layers.crowns[rows[at_row], at_col] - 1].astype(np.float32)
    dx = ((at_col + 0.5) * PIXEL_M - tree[:, 0]) / tree[:, 2]
    dy = ((rows[at_row] + 0.5) * PIXEL_M - tree[:, 1]) / tree[:, 2]
    squared = dx * dx + dy * dy
    leaf = squared < 0.82 + 0.13 * texture[at_row, at_col] + 0.1 * white[at_row, at_col]
    at_row, at_col, dx, dy, tree = at_row[leaf], at_col[leaf], dx[leaf], dy[leaf], tree[leaf]

    # A crown is a half sphere of radius 1, and `up` is the vertical component of its normal.
    up = np.sqrt(np.clip(1 - squared[leaf], 0.05, 1))
    toward_x, toward_y = sun.toward
    facing = up * math.sin(sun.elevation) + (dx * toward_x + dy * toward_y) * math.cos(sun.elevation)
    # Lambert's cosine law, relative to flat ground.
    light = AMBIENT + (1 - AMBIENT) * np.clip(facing, 0, None) / math.sin(sun.elevation)
    light *= 1 + 0.16 * white[at_row, at_col] + 0.12 * texture[at_row, at_col]
    return (at_row, at_col), np.clip(light, 0.1, 2).astype(np.float32), tree[:, 3].astype(np.intp)


def _cloud(sky: Sky, ys: Metres, xs: Metres) -> tuple[Floats, Floats]:
    """Opacity of the cloud above each pixel, and the share of sunlight that the cloud blocks there, both 0..1."""
    east, south = sky.sun.shadow(CLOUD_HEIGHT_M)
    opacity = sky.cloud.opacity(ys, xs)
    dimming = np.clip(1.1 * sky.cloud.opacity(ys - south, xs - east), 0, 0.75)
    return opacity, dimming


def _blur(reflectance: Floats) -> Floats:
    """Apply the point spread; removes `HALO` rows at top and bottom, repeats the edge columns."""
    side, middle, _ = POINT_SPREAD
    rows = side * (reflectance[:-2] + reflectance[2:]) + middle * reflectance[1:-1]
    wide = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
    blurred: Floats = side * (wide[:, :-2] + wide[:, 2:]) + middle * wide[:, 1:-1]
    return blurred


def _expose(reflectance: Floats, generator: np.random.Generator) -> NDArray[np.uint16]:
    """Digital numbers with read noise and photon noise."""
    signal = np.clip(reflectance * 10_000, 0, 60_000)
    noise = generator.standard_normal(signal.shape, dtype=np.float32)
    # Variance in digital numbers: 14^2 of read noise, and 0.7 per count of photon noise.
    signal += noise * np.sqrt(14.0**2 + 0.7 * signal)
    return np.clip(np.rint(signal), 1, 65_535).astype(np.uint16)
