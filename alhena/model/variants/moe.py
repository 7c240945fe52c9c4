"""A mixture of experts beside the MLP of a layer: each token is computed by the few experts that a router chooses (Shazeer et al. 2017).

    x ─┬─ MLP ────────────────────────────────────── norm ─┐
       ├─ router ─ softmax ─ the k largest ──┐             + ─►
       └─ norm ─ Σ of k experts, weighted ◄──┘─────── norm ─┘

The pairs (token, expert) are sorted by expert and split into blocks of one expert each, the last block of an expert padded:

    pairs     e0 e0 e0 e0 e0 e2 e3 e3            blocks of 4    e0 e0 e0 e0 │ e0 · · · │ e2 · · · │ e3 e3 · ·

A loop over the blocks takes the tokens of a block and the weights of its expert, so that no token meets an expert it did not choose,
and no expert without tokens is read (as MegaBlocks, Gale et al. 2022, without its kernels). One token costs k blocks of one pair.
The backward pass computes each block again and adds to the gradients in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config, sharding
from alhena.model.layers import gated, rms_norm
from alhena.model.linear import Weight, einsum, slice_stack
from alhena.model.quantized.layout import is_quantized, no_gradient
from alhena.model.spec import Normal, WeightSpec, matrix, stacked, vector
from alhena.shapes import Array, Bool, Float, Int, pytree

# Pairs of a block: about twice as many as an expert has on average, so that most experts need one block.
MAX_BLOCK = 256


@pytree
@dataclass(frozen=True)
class Layer:
    """Weights of one layer's X experts and of their router."""

    router_scale: Array  # [D], a factor
    router: Array  # [D, X]
    expert_scale: Array  # [X], a factor
    gate: Weight  # [X, D, F]
    up: Weight  # [X, D, F]
    down: Weight  # [X, F, D]
    pre_norm: Array  # [D]
    dense_post_norm: Array  # [D], of the MLP beside the experts
    expert_post_norm: Array  # [D]


def weights(c: config.Decoder) -> Layer:
    """Specifications of the weights of one layer. Raises ValueError for a decoder without experts."""
    if c.experts is None:
        raise ValueError("Decoder.experts is None; a mixture of experts needs a config.Experts")
    D, F, X = c.width, c.experts.hidden, c.experts.number
    router: Any = WeightSpec((D, X), ("width", None), Normal(0), "adam", decay=False)
    linear = partial(matrix, quantize=True)
    post_norm = vector(D, -1 + 1 / np.sqrt(2 * c.layers))
    return Layer(
        router_scale=vector(D, 1.0),
        router=router,
        expert_scale=vector(X, 1.0),
        gate=stacked(X, linear(1, (D, F), ("width", "hidden"))),
        up=stacked(X, linear(2, (D, F), ("width", "hidden"))),
        down=stacked(X, linear(3, (F, D), ("hidden", "width"))),
        pre_norm=vector(D),
        dense_post_norm=post_norm,
        expert_post_norm=post_norm,
    )


def with_mlp(
    w: Layer,
    x: Float[Array, "B L D"],
    mlp_out: Float[Array, "B L D"],
    c: config.Experts,
    dtype: str,
    first: Int[Array, ""] | int = 0,
) -> Float[Array, "B L D"]:
    """Output of the MLP and of the experts beside it, each normalized, summed; ``x`` is the layer's input, not normalized."""
    return rms_norm(mlp_out, w.dense_post_norm) + moe(w, x, c, dtype, first)


def moe(
    w: Layer, x: Float[Array, "B L D"], c: config.Experts, dtype: str, first: Int[Array, ""] | int = 0
) -> Float[Array, "B L D"]:
    """Output of the experts, normalized. Raises ValueError on a mesh.

    ``w`` may have the experts of several layers in one stack, where those of this layer begin at ``first``.
    """
    if sharding.has_mesh():
        raise ValueError("a mixture of experts cannot be sharded yet: run it on one device, without a mesh")
    tokens = x.reshape(-1, x.shape[-1])
    chosen, factors = route(w, tokens, c)
    plan = make_plan(chosen, c.number)
    plan = replace(plan, expert=plan.expert + first)
    experts = w.gate, w.up, w.down
    out = _experts(rms_norm(tokens, w.pre_norm), factors.reshape(-1), experts, plan, dtype)
    return rms_norm(out, w.expert_post_norm).reshape(x.shape)


def route(w: Layer, x: Float[Array, "T D"], c: config.Experts) -> tuple[Int[Array, "T k"], Float[Array, "T k"]]:
    """The experts of each token and the factors of their outputs, in float32."""
    normalized = rms_norm(x, w.router_scale.astype(jnp.float32) - 1) * x.shape[-1] ** -0.5
    probabilities = jax.nn.softmax(einsum("...i,io->...o", normalized, w.router.astype(jnp.float32)))
    largest, chosen = jax.lax.top_k(probabilities, c.chosen)
    return chosen, largest / largest.sum(-1, keepdims=True) * w.expert_scale[chosen]


@pytree
@dataclass(frozen=True)
class Plan:
    """Which pairs of token and expert each block computes."""

    # Number of blocks with pairs; later ones are empty.
    used: Int[Array, ""]
    expert: Int[Array, " blocks"]
    # Pair number i is of token i // k.
    pairs: Int[Array, "blocks size"]
    # False: padding.
    valid: Bool[Array, "blocks size"]


def block_size(pairs: int, experts: int) -> int:
    """Pairs of a block.

    >>> [block_size(8 * tokens, 128) for tokens in (1, 64, 512, 100_000)]
    [1, 8, 64, 256]
    """
    return min(1 << max(2 * pairs // experts, 1).bit_length() - 1, MAX_BLOCK)


def make_plan(chosen: Int[Array, "T k"], experts: int) -> Plan:
    """Sorts the pairs by expert and splits them into blocks."""
    flat = chosen.reshape(-1)
    n, size = flat.size, block_size(flat.size, experts)
    counts = jnp.zeros(experts, jnp.int32).at[flat].add(1)
    first_pair, last_block = jnp.cumsum(counts) - counts, jnp.cumsum(-(-counts // size))
    # Each expert with pairs may have one block that is not full.
    block = jnp.arange(min(n, n // size + experts))
    expert = jnp.minimum(jnp.searchsorted(last_block, block, side="right"), experts - 1)
    in_expert = block - jnp.where(expert > 0, last_block[expert - 1], 0)
    index = in_expert[:, None] * size + jnp.arange(size)
    valid = (index < counts[expert][:, None]) & (block < last_block[-1])[:, None]
    pairs = jnp.argsort(flat, stable=True)[jnp.where(valid, first_pair[expert][:, None] + index, 0)]
    return Plan(last_block[-1], expert, pairs, valid)


def _expert_mlp(
    experts: tuple[Weight, Weight, Weight], x: Float[Array, "size D"], factors: Float[Array, " size"], dtype: str
) -> Float[Array, "size D"]:
    """Output of one expert, times the factor of each token."""
    gate, up, down = experts
    matmul = partial(einsum, "...i,io->...o", dtype=dtype)
    return factors[:, None] * matmul(gated(matmul(x, gate), matmul(x, up)), down)


def _block(
    i: Int[Array, ""], x: Float[Array, "T D"], factors: Float[Array, " pairs"], experts: Any, plan: Plan
) -> tuple[Int[Array, " size"], tuple[Any, Array, Array]]:
    """Tokens of a block, and the arguments of :func:`_expert_mlp`; the factor of padding is 0."""
    tokens = plan.pairs[i] // (len(factors) // len(x))
    return tokens, (
        slice_stack(experts, plan.expert[i]),
        x[tokens],
        jnp.where(plan.valid[i], factors[plan.pairs[i]], 0),
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _experts(
    x: Float[Array, "T D"], factors: Float[Array, " pairs"], experts: Any, plan: Plan, dtype: str
) -> Float[Array, "T D"]:
    """Weighted sum of the outputs of each token's experts."""

    def add_block(i: Array, out: Array) -> Array:
        tokens, arguments = _block(i, x, factors, experts, plan)
        return out.at[tokens].add(_expert_mlp(*arguments, dtype))

    return jax.lax.fori_loop(0, plan.used, add_block, jnp.zeros(x.shape, jnp.float32))


def _forward_rule(
    x: Float[Array, "T D"], factors: Float[Array, " pairs"], experts: Any, plan: Plan, dtype: str
) -> tuple[Float[Array, "T D"], Any]:
    return _experts(x, factors, experts, plan, dtype), (x, factors, experts, plan)


def _backward_rule(dtype: str, residuals: Any, cotangent: Float[Array, "T D"]) -> tuple[Any, ...]:
    """Cotangents of tokens, factors and weights (of quantized ones zeros); None for the plan."""
    x, factors, experts, plan = residuals
    leaves, structure = jax.tree.flatten(experts, is_leaf=is_quantized)
    trained = [not is_quantized(leaf) for leaf in leaves]

    def add_block(i: Array, sums: Any) -> Any:
        d_x, d_factors, d_experts = sums
        tokens, arguments = _block(i, x, factors, experts, plan)
        _, pull = jax.vjp(partial(_expert_mlp, dtype=dtype), *arguments)
        d_slices, d_tokens, d_block = pull(cotangent[tokens])
        d_slices = [d for d, t in zip(jax.tree.leaves(d_slices, is_leaf=is_quantized), trained, strict=True) if t]
        return (
            d_x.at[tokens].add(jnp.where(plan.valid[i][:, None], d_tokens, 0)),
            d_factors.at[plan.pairs[i]].add(jnp.where(plan.valid[i], d_block, 0)),
            [total.at[plan.expert[i]].add(d) for total, d in zip(d_experts, d_slices, strict=True)],
        )

    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf, t in zip(leaves, trained, strict=True) if t]
    start = jnp.zeros(x.shape, jnp.float32), jnp.zeros(factors.shape, jnp.float32), zeros
    d_x, d_factors, d_experts = jax.lax.fori_loop(0, plan.used, add_block, start)
    rest = iter(d_experts)
    cotangents = [
        next(rest).astype(leaf.dtype) if t else no_gradient(leaf) for leaf, t in zip(leaves, trained, strict=True)
    ]
    return d_x.astype(x.dtype), d_factors, jax.tree.unflatten(structure, cotangents), None


_experts.defvjp(_forward_rule, _backward_rule)
