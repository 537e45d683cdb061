"""Allowlist of the operators that an exported network may use.

Each name is one of torch's ATen operators (in any overload, and in place where the archive ends it in `_`).
All of them turn tensors and numbers into tensors: none opens a file or a socket, runs code, keeps state, draws
random numbers outside of training, or reads memory that no one wrote. So `aten::from_file`, `rand`, `empty`,
`set_`, `as_strided`, `_unsafe_index` and every operator of another namespace are not here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

_LAYERS = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear embedding
batch_norm _native_batch_norm_legit_no_training instance_norm group_norm native_group_norm
layer_norm native_layer_norm rms_norm dropout feature_dropout alpha_dropout
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_unpool2d
upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d affine_grid_generator
pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im
pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
scaled_dot_product_attention
"""
_ACTIVATIONS = """
relu relu6 leaky_relu rrelu prelu _prelu_kernel elu selu celu gelu silu mish glu hardtanh hardswish hardsigmoid
softplus softshrink hardshrink log_sigmoid threshold sigmoid logit tanh
softmax _softmax log_softmax _log_softmax
"""
_ARITHMETIC = """
abs absolute neg negative add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod
addcmul addcdiv lerp pow square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p
sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc sign
ceil floor round trunc frac clamp clamp_min clamp_max clip maximum minimum fmax fmin nan_to_num hypot
eq ne lt le gt ge isnan isinf isfinite isclose where masked_fill
logical_and logical_or logical_xor logical_not
bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__
"""
_PRODUCTS = """
sum mean prod std var var_mean std_mean amax amin aminmax max min argmax argmin any all cumsum cumprod
logsumexp norm linalg_vector_norm topk sort argsort
mm bmm matmul addmm addbmm baddbmm einsum dot mv outer tensordot
"""
_SHAPES = """
view reshape view_as reshape_as _unsafe_view flatten unflatten squeeze unsqueeze expand expand_as
permute transpose t numpy_T movedim moveaxis swapaxes swapdims contiguous clone alias
cat concat concatenate stack hstack vstack split split_with_sizes chunk unbind tensor_split
slice select narrow index index_select gather take_along_dim masked_select
roll flip fliplr flipud rot90 repeat repeat_interleave tile broadcast_to broadcast_tensors meshgrid diagonal
tril triu scatter scatter_add index_put index_add index_fill index_copy slice_scatter select_scatter
copy _to_copy to type_as
detach lift lift_fresh lift_fresh_copy resolve_conj resolve_neg
"""
_CONSTANTS = """
zeros ones full arange linspace scalar_tensor eye zeros_like ones_like full_like new_zeros new_ones new_full
fill zero
"""
_SIZES = "sym_size sym_numel size numel dim"

OPERATORS = frozenset(" ".join((_LAYERS, _ACTIVATIONS, _ARITHMETIC, _PRODUCTS, _SHAPES, _CONSTANTS, _SIZES)).split())
"""Base names in `torch.ops.aten`."""

ASSERTIONS = (
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten._assert_async.msg",
    "torch.ops.aten.sym_constrain_range.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
)
"""Assertions that the exporter adds for input sizes; sizes are checked before a network runs instead."""

SIZE_ARITHMETIC: dict[str, Callable[..., object]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("neg", "eq", "ne", "lt", "le", "gt", "ge")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch._sym_sqrt": math.sqrt,
}
"""Python functions that compute with heights, widths and counts."""


def base_name(target: str) -> str | None:
    """The allowed operator that a target names; None for everything else.

    >>> base_name("torch.ops.aten.relu_.default"), base_name("torch.ops.aten.from_file.default")
    ('relu', None)
    """
    parts = target.split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"] or parts[4].startswith("_") or "out" in parts[4]:
        return None
    if parts[3] in OPERATORS:
        return parts[3]
    plain = parts[3].removesuffix("_")
    return plain if plain in OPERATORS else None
