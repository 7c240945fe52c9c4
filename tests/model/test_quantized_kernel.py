"""The compiled matmul kernel: every implementation gives the numbers of the path without it, whatever the other rows are."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model.quantized import native
from alhena.model.quantized.layout import Quantized, at, packed_shapes
from alhena.model.quantized.matmul import matmul, matmuls, portable_matmul
from alhena.model.quantized.rounding import quantize
from tests.compiled import fully_optimized

pytestmark = pytest.mark.skipif(
    not native.instructions(), reason="the kernel was not built: python setup.py build_ext --inplace"
)
INSTRUCTIONS = native.instructions()


def random_weight(seed: int, bits: int, *shape: int) -> Quantized:
    """Every value of the packed integers occurs; scales of both signs."""
    rng = np.random.default_rng(seed)
    w = quantize(rng.normal(size=shape).astype(np.float32), bits)
    packed = rng.integers(0, 256, w.packed.shape, np.uint8)
    return replace(w, packed=jnp.asarray(packed if bits == 4 else packed.view(np.int8)))


def rows(n: int, inputs: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(n).normal(size=(n, inputs)), jnp.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 5), (96, 50), (640, 256)])
def test_every_implementation_equals_the_path_without_the_kernel(instructions, bits, inputs, outputs):
    x, w = rows(37, inputs), random_weight(0, bits, inputs, outputs)
    x = x.at[3].set(0).at[5, :32].set(1e-38)
    (ours,) = native.matmuls(x, (w,), instructions)
    expected = np.asarray(portable_matmul(x, w))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(ours, native.matmuls(x, (w,), "portable")[0])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_row_does_not_depend_on_the_others(instructions, bits):
    x, w = rows(37, 96), random_weight(1, bits, 96, 50)
    (together,) = native.matmuls(x, (w,), instructions)
    for n in (*range(1, 18), 33):
        np.testing.assert_array_equal(native.matmuls(x[-n:], (w,), instructions)[0], together[-n:])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_activations_that_are_not_finite_are_seen_in_their_row_only(instructions):
    x, w = rows(5, 64), random_weight(2, 4, 64, 20)
    (expected,) = native.matmuls(x, (w,), instructions)
    for value in (np.nan, np.inf, -np.inf):
        (ours,) = native.matmuls(x.at[2, 40].set(value), (w,), instructions)
        assert not np.isfinite(ours[2]).any()
        np.testing.assert_array_equal(np.delete(ours, 2, 0), np.delete(expected, 2, 0))


@fully_optimized
def test_several_weights_and_layers_of_stacks_are_one_call():
    x = rows(3, 64)
    weights = [at(random_weight(3, 4, 3, 64, 20), 2), random_weight(4, 8, 64, 33), at(random_weight(5, 8, 2, 64, 7), 1)]
    run = jax.jit(lambda x: matmuls(x, weights))
    assert str(jax.make_jaxpr(run)(x)).count("ffi_call[") == 1
    for ours, w in zip(run(x), weights, strict=True):
        np.testing.assert_array_equal(ours, portable_matmul(x, w))


def test_a_scan_over_a_stack_needs_no_memory_for_its_weights():
    w = random_weight(6, 4, 6, 256, 256)

    def run(x, w, unroll):
        return jax.lax.scan(lambda x, i: (matmul(x, at(w, i)) / 100, None), x, jnp.arange(6), unroll=unroll)[0]

    for unroll in (1, 6):
        compiled = jax.jit(run, static_argnums=2).lower(rows(1, 256), w, unroll).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < w.packed.nbytes / 6


def test_calls_of_several_threads_at_once():
    x, w = rows(40, 512), random_weight(7, 4, 512, 1024)
    run, expected = jax.jit(matmul), matmul(x, w)
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(lambda _: run(x, w), range(60)):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"packed": np.zeros((2, 2, 4, 16, 3), np.uint8)},
            "shapes of packed values or scales do not fit 64 inputs and 20",
        ),
        ({"packed": np.zeros((1, 2, 4, 16, 4), np.uint8)}, "do not fit"),
        ({"packed": np.zeros((3, 2, 2, 4, 16, 4), np.uint8)}, "do not fit"),
        ({"packed": np.zeros(4, np.uint8)}, "do not fit"),
        ({"packed": np.zeros((2, 2, 4, 16, 4), np.int32)}, "dtypes"),
        ({"scales": np.zeros((2, 2, 16), np.float32)}, "dtypes"),
        ({"scales": np.zeros((2, 2, 8), np.float16)}, "do not fit"),
        ({"layer": np.int32(1)}, "layer 1 of 1"),
        ({"layer": np.int32(-1)}, "layer -1 of 1"),
        ({"layer": np.zeros(2, np.int32)}, "dtypes"),
        ({"x": np.zeros((3, 60), np.float32)}, "activations must be float32"),
        ({"x": np.zeros((4, 64), np.float32)}, "rows of activations and result differ"),
        ({"instructions": "abacus"}, "this processor has no instructions abacus"),
    ],
)
def test_damaged_arguments_are_errors(change, message):
    packed, scales = packed_shapes(4, 64, 20)
    arguments = {
        "x": np.zeros((3, 64), np.float32),
        "packed": np.zeros(packed, np.uint8),
        "scales": np.zeros(scales, np.float16),
        "layer": np.int32(0),
        **change,
    }
    instructions = arguments.pop("instructions", "portable")
    call = jax.ffi.ffi_call(native.TARGET, [jax.ShapeDtypeStruct((3, 20), jnp.float32)])
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(*arguments.values(), instructions=instructions))


@fully_optimized
def test_without_the_kernel_the_same_numbers_and_one_warning(monkeypatch, caplog):
    x, w = rows(3, 64), random_weight(8, 4, 64, 20)
    expected = matmul(x, w)
    monkeypatch.setenv("ALHENA_INSTRUCTIONS", "none")
    native.chosen.cache_clear()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(matmul(x, w), expected)
        matmul(x, w)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the kernel for quantized weights is not used"
    ]
    monkeypatch.setenv("ALHENA_INSTRUCTIONS", "abacus")
    native.chosen.cache_clear()
    with pytest.raises(ValueError, match=r"ALHENA_INSTRUCTIONS=abacus: there are .*portable, none"):
        matmul(x, w)
    monkeypatch.undo()
    native.chosen.cache_clear()
