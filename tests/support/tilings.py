"""Hypothesis strategies of grid shapes and tilings."""

from hypothesis import strategies as st

from pipeline.inference.tiling.tiles import Tiling


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    """Any tiling a network may ask for, padded or unpadded, aligned or not."""
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    margin = draw(st.integers(0, 6))
    output = stride * draw(st.integers(1, 12))
    align = draw(st.sampled_from([1, stride]))
    overlap = 2 * margin + align * draw(st.integers(0, (output - 1) // align))
    if (output + 2 * margin - overlap) % align:
        overlap = 2 * margin
    size, fixed = output + 2 * margin, draw(st.booleans())
    return Tiling(tile_size=size, overlap=overlap, stride=stride, margin=margin, align=align, fixed=fixed)


shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))
