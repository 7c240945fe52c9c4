"""Matmul by quantized weights on a GPU: one kernel that reads the packed values, dequantizes them in registers and multiplies.

Activations are bfloat16, not rounded to 8 bits. Half a tile is one operand of the tensor cores: 16 inputs, its low or its high halves.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from alhena.model.quantized.layout import GROUP, TILE, Quantized
from alhena.shapes import Array, Float

# Rows and tiles of outputs of one program.
ROWS, TILES = 16, 4


def matmul(x: Float[Array, "M I"], w: Quantized, interpret: bool = False) -> Float[Array, "M O"]:
    """``x`` times a weight, which may be a layer of a stack."""
    rows = len(x)
    layers = w.packed if w.layer is not None else w.packed[None]
    scales = w.scales if w.layer is not None else w.scales[None]
    layer = jnp.reshape(jnp.int32(0) if w.layer is None else w.layer, 1)
    tiles = layers.shape[1]
    x = jnp.pad(x.astype(jnp.bfloat16), ((0, -rows % ROWS), (0, 0)))
    call = pl.pallas_call(
        _kernel,
        grid=(len(x) // ROWS, pl.cdiv(tiles, TILES)),
        in_specs=[pl.no_block_spec] * 4,
        out_specs=pl.BlockSpec((ROWS, TILES * TILE), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((len(x), pl.cdiv(tiles, TILES) * TILES * TILE), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="quantized_matmul",
    )
    return call(x, layers, scales, layer)[:rows, : w.outputs]


def _kernel(x: Any, packed: Any, scales: Any, layer: Any, out: Any) -> None:
    """Some rows times some tiles."""
    row, layer_index = pl.program_id(0) * ROWS, layer[0]
    _, tiles, groups, bits, *_ = packed.shape
    # The last program may have fewer tiles: it computes the last one several times.
    tile = jnp.minimum(pl.program_id(1) * TILES + jnp.arange(TILES), tiles - 1)

    def add_group(g: Array, total: Float[Array, "rows outputs"]) -> Float[Array, "rows outputs"]:
        sums = jnp.zeros(total.shape, jnp.float32)
        for half in range(2):
            values = _half(packed, layer_index, tile, g, half, bits)
            inputs = x[pl.ds(row, ROWS), pl.ds(g * GROUP + half * GROUP // 2, GROUP // 2)]
            sums += pl.dot(inputs, values)
        scale = scales[layer_index, tile[:, None], g, jnp.arange(TILE)[None, :]]
        return total + sums * scale.astype(jnp.float32).reshape(1, -1)

    out[...] = jax.lax.fori_loop(0, groups, add_group, jnp.zeros((ROWS, TILES * TILE), jnp.float32))


def _half(packed: Any, layer: Array, tile: Array, g: Array, half: int, bits: int) -> Float[Array, "16 outputs"]:
    """The integers of half a group of each tile, inputs first."""
    inputs, outputs = jnp.arange(GROUP // 2), jnp.arange(TILES * TILE)
    vector, within = inputs // 4, inputs % 4
    if bits == 8:
        vector = vector + 4 * half
    tiles = jnp.repeat(tile, TILE)
    values = packed[layer, tiles[None, :], g, vector[:, None], (outputs % TILE)[None, :], within[:, None]]
    if bits == 4:
        values = ((values >> (4 * half)) & 15).astype(jnp.int8) - 8
    return values.astype(jnp.bfloat16)
