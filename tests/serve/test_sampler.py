"""Sampling from candidates = sampling from the complete sorted vocabulary, token for token, and the order that is never computed."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.serve.decoding.sampling import sampler
from alhena.serve.decoding.sampling.sampler import CANDIDATES, Sampling, sample, stack

# Settings of one batch, and how wide the distribution is. The last three reach beyond the candidates.
SETTINGS = [
    (Sampling(), 1.0),
    (Sampling(temperature=1.0, top_k=64, top_p=0.95), 3.0),
    (Sampling(temperature=0.7, top_k=5), 1.0),
    (Sampling(temperature=1.0, top_p=0.3), 4.0),
    (Sampling(temperature=1.0, top_p=0.9), 0.1),
    (Sampling(temperature=1.0, top_k=CANDIDATES + 100), 0.1),
    (Sampling(temperature=2.0, top_k=5000, top_p=0.5), 0.1),
]


def sorted_sample(logits, s, step):
    """The definition: rank all tokens, keep the first ones, sample by rank."""
    scaled = logits / max(s.temperature, 1e-4)
    order = np.argsort(-scaled, kind="stable")
    p = np.exp((scaled - scaled.max())[order].astype(np.float64))
    kept = np.arange(len(p)) < (s.top_k or len(p))
    p = np.where(kept, p, 0) / p[kept].sum()
    kept &= np.cumsum(p) - p < s.top_p
    # Of every token by its id.
    arrays = jax.tree.map(lambda a: a[0], stack([s]))
    noise = np.asarray(sampler._noise(arrays, jnp.int32(step), jnp.arange(len(p))))
    sampled = order[np.argmax(np.where(kept, noise[order] + scaled[order], -np.inf))]
    return int(sampled if s.temperature > 0 else np.argmax(logits))


@pytest.mark.parametrize("vocabulary", [300, 20_000])
def test_samples_are_those_of_the_sorted_vocabulary(vocabulary):
    rng = np.random.default_rng(vocabulary)
    samplings = [Sampling(s.temperature, s.top_k, s.top_p, seed) for s, _ in SETTINGS for seed in range(6)]
    widths = np.repeat([width for _, width in SETTINGS], 6)
    logits = (rng.normal(size=(len(samplings), vocabulary)) * widths[:, None]).astype(np.float32)
    logits[:, rng.integers(0, vocabulary, 100)] = -np.inf
    run = jax.jit(sample)
    together = np.asarray(run(jnp.asarray(logits), stack(samplings), jnp.full(len(samplings), 3)))
    expected = [sorted_sample(*pair, 3) for pair in zip(logits, samplings, strict=True)]
    np.testing.assert_array_equal(together, expected)
    for i in range(0, len(samplings), 6):
        alone = run(jnp.asarray(logits[i : i + 1]), stack(samplings[i : i + 1]), jnp.full(1, 3))
        assert int(alone[0]) == together[i]


def test_without_top_k_and_top_p_a_large_vocabulary_is_sampled_in_order_of_its_ids(monkeypatch):
    monkeypatch.setattr(sampler, "MAX_SORTED", 4)
    monkeypatch.setattr(sampler, "CANDIDATES", 3)
    p, n = np.array([0.4, 0.05, 0.3, 0.15, 0.1]), 4000
    settings = stack([Sampling(temperature=1.0, seed=i) for i in range(n)])
    logits = jnp.tile(jnp.asarray(np.log(p), jnp.float32), (n, 1))
    tokens = np.asarray(jax.jit(lambda *a: sampler.sample(*a))(logits, settings, jnp.zeros(n, jnp.int32)))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / n, p, atol=0.03)


def test_a_large_vocabulary_is_sorted_in_one_branch_only():
    """That of sequences whose candidates do not suffice."""
    shapes = jnp.zeros((2, 20_000)), stack([Sampling(temperature=1.0)] * 2), jnp.zeros(2, jnp.int32)
    program = jax.jit(sample).lower(*shapes).as_text()
    assert len(re.findall(r"stablehlo.sort", program)) == 1


@pytest.mark.parametrize("vocabulary", [7, 300, 40_000])
def test_the_first_of_the_largest_allowed_scores_is_the_greedy_token(vocabulary):
    rng = np.random.default_rng(vocabulary)
    # Few different scores: several tokens have the largest.
    logits = np.floor(rng.normal(size=(5, vocabulary)) * 2).astype(np.float32)
    logits[3] = -np.inf
    for allowed in (
        rng.random((5, vocabulary)) < 0.3,
        rng.random((1, vocabulary)) < 0.3,
        np.ones((1, vocabulary), bool),
    ):
        tokens = jax.jit(sample)(logits, stack([Sampling()] * 5), jnp.zeros(5, jnp.int32), allowed)
        np.testing.assert_array_equal(tokens, np.where(allowed, logits, -np.inf).argmax(-1))
