"""The compiled kernels of decoding, XLA custom calls on the CPU (csrc/): attention of the next tokens, matmuls and norms of a few rows.

    python setup.py build_ext --inplace        builds them in a checkout

They are optional: without them, on accelerators, on a mesh, and under gradients the same functions are computed by XLA. With them the result
of a row depends, bitwise, neither on the other rows nor on their number, so that a step computes only the sequences in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alhena.model import sharding
from alhena.model.kernel_library import load_kernels
from alhena.shapes import Array, Bool, Float, Int

TARGETS = {
    "alhena_attend_token": "AlhenaAttendToken",
    "alhena_attend_chunk": "AlhenaAttendChunk",
    "alhena_multiply": "AlhenaMultiply",
    "alhena_normalize": "AlhenaNormalize",
    "alhena_take_rows": "AlhenaTakeRows",
    "alhena_largest": "AlhenaLargest",
    "alhena_rank": "AlhenaRank",
}
# Rows that a matmul by a float weight reads it for; XLA is faster for more.
MAX_ROWS = 16


@cache
def is_available() -> bool:
    """Whether the kernels were built and this is a CPU; registers them."""
    return jax.default_backend() == "cpu" and load_kernels(Path(__file__).parent, TARGETS) is not None


def multiplies(w: Array, transposed: bool = False) -> bool:
    """Whether the kernel multiplies by a float weight ``[in, out]``, or with ``transposed`` ``[out, in]``, or by one of a stack."""
    sizes = w.shape[-1:] if transposed else w.shape[-2:]
    return w.dtype in (jnp.float32, jnp.bfloat16) and not any(size % 32 for size in sizes) and is_available()


def multiply(
    x: Float[Array, "M I"], w: Float[Array, "*layers a b"], layer: Int[Array, ""] | int = 0, transposed: bool = False
) -> Float[Array, "M O"]:
    """``x`` times a weight, or the one of a stack at an index; float32. A bfloat16 weight has ``x`` rounded to it."""
    out = jax.ShapeDtypeStruct((len(x), w.shape[-2] if transposed else w.shape[-1]), jnp.float32)
    index = jnp.asarray(layer, jnp.int32).reshape(1)
    return jax.ffi.ffi_call("alhena_multiply", out)(x.astype(jnp.float32), w, index, transposed=transposed)


def normalizes(x: Array) -> bool:
    """Whether the kernel computes the norm of an array's rows: a few of float32."""
    fits = x.dtype == jnp.float32 and 0 < x.size <= MAX_ROWS * x.shape[-1] and x.shape[-1] % 16 == 0
    return fits and is_available()


def normalize(x: Float[Array, "*rows D"], scale: Float[Array, " D"] | None) -> Float[Array, "*rows D"]:
    """The root-mean-square norm of each row; ``scale`` is an offset from one."""
    scales = jnp.zeros(0) if scale is None else scale.astype(jnp.float32)
    out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return jax.ffi.ffi_call("alhena_normalize", out, vmap_method="sequential")(x, scales)


def take_rows(w: Float[Array, "R D"], ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of a table, float32."""
    out = jax.ShapeDtypeStruct((*ids.shape, w.shape[1]), jnp.float32)
    return jax.ffi.ffi_call("alhena_take_rows", out)(w, ids.astype(jnp.int32))


def largest(scores: Float[Array, "B V"], allowed: Bool[Array, "#B V"]) -> Int[Array, " B"]:
    """The first of the largest scores of each row that are allowed; 0 where none is larger than -inf."""
    out = jax.ShapeDtypeStruct((len(scores),), jnp.int32)
    return jax.ffi.ffi_call("alhena_largest", out, vmap_method="sequential")(scores, allowed)


def top(
    scores: Float[Array, "B V"], allowed: Bool[Array, "#B V"], count: int
) -> tuple[Float[Array, "B count"], Int[Array, "B count"]]:
    """The largest scores of each row that are allowed, in order, and their indices; then -inf, where there are fewer."""
    shapes = [jax.ShapeDtypeStruct((len(scores), count), dtype) for dtype in (jnp.float32, jnp.int32)]
    values, ids = jax.ffi.ffi_call("alhena_rank", shapes, vmap_method="sequential")(scores, allowed)
    return values, ids


def attend_token(
    inputs: Sequence[Array],
    cache: Sequence[Sequence[Array]],
    tables: Sequence[Int[Array, "B T"]],
    settings: dict[str, Any],
) -> tuple[Float[Array, "B heads"], list[tuple[Array, ...]]]:
    """Attention of one token of each sequence; and the cache of each kind of layer with its keys and values.

    ``inputs``: queries, keys and values as projected (without keys nothing is written), the scales of their norms, the RoPE tables
    of queries and keys, positions, which are valid, and the index of the layer among those of each kind: the first that is one is used.
    """
    entries = [(*arrays, table) for arrays, table in zip(cache, tables, strict=True)]
    flat = [a for entry in entries for a in entry]
    writes = inputs[1].size > 0
    results, aliases, first = [jax.ShapeDtypeStruct(inputs[0].shape, jnp.float32)], {}, len(inputs)
    for entry in entries if writes else ():
        for i, a in enumerate(entry[:-1]):
            aliases[first + i] = len(results)
            results.append(jax.ShapeDtypeStruct(a.shape, a.dtype))
        first += len(entry)
    call = jax.ffi.ffi_call("alhena_attend_token", results, input_output_aliases=aliases)
    out, *rest = call(*inputs, *flat, **settings)
    if not writes:
        return out, [tuple(arrays) for arrays in cache]
    written, parts = iter(rest), [len(arrays) for arrays in cache]
    return out, [tuple(next(written) for _ in range(n)) for n in parts]


def attends(head_dim: int) -> bool:
    """Whether the kernel computes attention to pages of heads of a size."""
    return head_dim % 16 == 0 and not sharding.has_mesh() and is_available()


def attend_chunk(
    q: Float[Array, "B L N H"],
    ranges: tuple[Int[Array, "B L"], Int[Array, "B L"]],
    layer: Int[Array, ""],
    pages: Sequence[Array],
    settings: dict[str, Any],
) -> Float[Array, "B L N H"]:
    """Attention of tokens to the pages of their sequences in one layer.

    ``ranges``: the first position that each token attends to, and the one after the last; ``pages``: keys, values, their scales where
    there are some, and the table of the sequences.
    """
    out = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    inputs = (q.astype(jnp.float32), *ranges, layer.astype(jnp.int32).reshape(1), *pages)
    return jax.ffi.ffi_call("alhena_attend_chunk", out)(*inputs, **settings)
