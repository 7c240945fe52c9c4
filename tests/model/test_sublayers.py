"""The kernel of what follows attention equals the separate matmuls, norms and GeGLU, and a row of it depends on no other, bitwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model.layers import gated, rms_norm
from alhena.model.quantized import native
from alhena.model.quantized.layout import Quantized, at
from alhena.model.quantized.matmul import matmul, matmuls
from alhena.model.quantized.rounding import quantize

pytestmark = pytest.mark.skipif(
    not native.instructions(), reason="the kernel was not built: python setup.py build_ext --inplace"
)
INPUTS, WIDTH, HIDDEN = 96, 160, 608


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def case(rows: int, norms: tuple[bool, bool] = (True, True)):
    """Activations, heads, scales of norms and weights, one of them a layer of a stack and one of 8 bits."""
    shapes = (INPUTS, WIDTH), (WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
    output, gate, up, down = (normal(i, *shape) / shape[0] ** 0.5 for i, shape in enumerate(shapes))
    weights = quantize(output), at(quantize(jnp.stack([up, gate])), 1), quantize(up), quantize(down, 8)
    scales = [normal(7 + i, WIDTH) / 4 for i in range(3)]
    of_norms = (scales[0] if norms[0] else None, scales[1], scales[2] if norms[1] else None)
    return normal(5, rows, WIDTH), normal(6, rows, INPUTS), of_norms, weights


def separate(x: jax.Array, heads: jax.Array, norms, weights: tuple[Quantized, ...]) -> jax.Array:
    """The same by the functions of the decoder."""
    output, gate, up, down = weights
    added = matmul(heads, output)
    x = x + (added if norms[0] is None else rms_norm(added, norms[0]))
    y = matmul(gated(*matmuls(rms_norm(x, norms[1]), (gate, up))), down)
    return x + (y if norms[2] is None else rms_norm(y, norms[2]))


@pytest.mark.parametrize("rows", [1, 5, 37])
@pytest.mark.parametrize("norms", [(True, True), (False, False), (True, False)])
def test_it_equals_the_separate_functions(rows, norms):
    x, heads, scales, weights = case(rows, norms)
    ours, expected = native.sublayers(x, heads, scales, weights, ""), np.asarray(separate(x, heads, scales, weights))
    # Sums in another order change few activations by a unit of their 8 bits.
    error = np.abs(np.asarray(ours) - expected)
    assert error.max() < 0.02
    assert error.mean() < 1e-4


@pytest.mark.parametrize("instructions", native.instructions())
def test_a_row_does_not_depend_on_the_others(instructions):
    x, heads, norms, weights = case(37)
    together = np.asarray(native.sublayers(x, heads, norms, weights, instructions))
    np.testing.assert_array_equal(together, native.sublayers(x, heads, norms, weights, ""))
    for n in (1, 2, 3, 4, 16, 17, 33):
        alone = native.sublayers(x[-n:], heads[-n:], norms, weights, instructions)
        np.testing.assert_array_equal(alone, together[-n:])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_seen_in_their_row_only(value):
    x, heads, norms, weights = case(5)
    expected = native.sublayers(x, heads, norms, weights, "")
    ours = native.sublayers(x, heads.at[2, 40].set(value), norms, weights, "")
    assert not np.isfinite(ours[2]).any()
    np.testing.assert_array_equal(np.delete(ours, 2, 0), np.delete(expected, 2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros((3, 48), np.float32)}, "activations must be"),
        ({1: np.zeros((2, INPUTS), np.float32)}, "rows of activations differ"),
        ({2: np.zeros(4, np.float32)}, "scale of a norm"),
        ({3: np.zeros(0, np.float32)}, "scale of a norm"),
        ({14: np.zeros(3, np.int8)}, "activations must be"),
        ({7: np.int32(1)}, "layer 1 of 1"),
    ],
)
def test_damaged_arguments_are_errors(change, message):
    x, heads, norms, weights = case(3)
    packed = [a for w in weights for a in (w.packed, w.scales, np.int32(0) if w.layer is None else w.layer)]
    arguments = dict(enumerate((x, heads, *norms, *packed))) | change
    call = jax.ffi.ffi_call(native.SUBLAYERS, jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(*arguments.values(), instructions=""))
