"""The compiled matmul kernels: XLA custom calls on the CPU (csrc/), built at installation where there is a C++ compiler.

    python setup.py build_ext --inplace        builds it in a checkout

The environment variable ALHENA_INSTRUCTIONS chooses one of :func:`instructions`, or ``none``: the path without the kernel. On a GPU
``triton`` chooses the kernel of gpu.py, which no GPU has run yet; weights are dequantized otherwise.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp

from alhena.model.kernel_library import load_kernels
from alhena.model.quantized.layout import Quantized
from alhena.shapes import Array, Float

LOG = logging.getLogger(__name__)
TARGET, SUBLAYERS = "alhena_quantized_matmul", "alhena_sublayers"
NONE, TRITON = "none", "triton"


@cache
def instructions() -> tuple[str, ...]:
    """The instruction sets of this processor for which the kernel has an implementation, fastest first; empty if it was not built."""
    library = load_kernels(Path(__file__).parent, {name: name for name in (TARGET, SUBLAYERS)})
    if library is None:
        return ()
    library.alhena_instructions.restype = ctypes.c_char_p
    return tuple(library.alhena_instructions().decode().split())


def requested() -> str:
    """The value of ALHENA_INSTRUCTIONS; empty if it is not set."""
    return os.environ.get("ALHENA_INSTRUCTIONS", "")


@cache
def chosen() -> str:
    """The instruction set that is used; ``none`` if the kernel was not built. Raises ValueError for one that does not exist here."""
    name = requested() or next(iter(instructions()), NONE)
    if name not in (*instructions(), NONE):
        raise ValueError(f"ALHENA_INSTRUCTIONS={name}: there are {', '.join((*instructions(), NONE))}")
    if name == NONE:
        LOG.warning(
            "the kernel for quantized weights is not used: matmuls by them are slow%s",
            "" if instructions() else "; it was not built: install a C++ compiler, then alhena again",
        )
    return name


def matmuls(x: Float[Array, "M I"], weights: tuple[Quantized, ...], instructions: str) -> tuple[Array, ...]:
    """``x`` times each weight, in one call: its activations are rounded once, and its threads begin together."""
    results = [jax.ShapeDtypeStruct((len(x), w.outputs), jnp.float32) for w in weights]
    call = jax.ffi.ffi_call(TARGET, results, vmap_method="sequential")
    return tuple(call(x, *_arguments(weights), instructions=instructions))


def _arguments(weights: tuple[Quantized, ...]) -> list[Array]:
    return [a for w in weights for a in (w.packed, w.scales, jnp.int32(0) if w.layer is None else w.layer)]


def sublayers(
    x: Float[Array, "M D"],
    heads: Float[Array, "M NH"],
    norms: tuple[Float[Array, " D"] | None, ...],
    weights: tuple[Quantized, ...],
    instructions: str,
) -> Float[Array, "M D"]:
    """What follows attention in a layer, in one call: output projection and MLP, with norms and residual connections.

    ``norms`` are the scales of those after the output projection (None: no norm), before and after the MLP; ``weights`` are output,
    gate, up and down.
    """
    scales = [jnp.zeros(0) if scale is None else scale.astype(jnp.float32) for scale in norms]
    call = jax.ffi.ffi_call(SUBLAYERS, jax.ShapeDtypeStruct(x.shape, jnp.float32), vmap_method="sequential")
    return call(x, heads, *scales, *_arguments(weights), instructions=instructions)
