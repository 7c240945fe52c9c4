"""Our Muon equals that of optax; sharding, which ours adds, is tested in test_sharded.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from alhena.train.muon import scale_by_muon


def test_three_steps_equal_those_of_optax():
    rng = np.random.default_rng(0)
    params = {"wide": (3, 16, 40), "tall": (3, 40, 16), "single": (12, 30)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in params.items()}
    dimensions = {name: MuonDimensionNumbers(p.ndim - 2, p.ndim - 1) for name, p in params.items()}
    theirs = muon(0.1, beta=0.9, weight_decay=0.05, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2)
    ours = optax.chain(scale_by_muon(0.9), optax.add_decayed_weights(0.05), optax.scale_by_learning_rate(0.1))
    steps, states = [jax.jit(t.update) for t in (theirs, ours)], [t.init(params) for t in (theirs, ours)]
    for _ in range(3):
        gradient = {name: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for name, p in params.items()}
        (expected, states[0]), (actual, states[1]) = (
            f(gradient, s, params) for f, s in zip(steps, states, strict=True)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)
        assert all(np.abs(update).max() > 0.01 for update in jax.tree.leaves(actual))
