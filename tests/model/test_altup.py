"""AltUp, LAuReL and the sparse gate = a transcription of their formulas in NumPy, for one token at a time."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from alhena.model import config, spec
from alhena.model.variants import altup

D, S, R = 24, 4, 6
C = config.Decoder(
    D, 2, 2, 12, 32, per_layer_inputs=config.PerLayerInputs(4, 16), value_norm=True, altup=config.AltUp(S, R)
)
B, L = 2, 3


def randomized(specs, seed: int):
    """Weights of which each has an effect."""
    rng = np.random.default_rng(seed)
    params = spec.init(jax.random.key(seed), specs)
    return jax.tree.map(lambda x: np.asarray(x + 0.5 * rng.normal(size=x.shape), np.float32), params)


LAYER, STREAMS = randomized(altup.layer_weights(C), 1), randomized(altup.weights(C), 2)
X = np.random.default_rng(3).normal(size=(S, B, L, D)).astype(np.float32)


def rms(x, w):
    return x / np.sqrt(np.mean(x**2) + 1e-6) * (1 + w)


def scaled_to(target, y):
    return y * np.sqrt(np.mean(target**2)) / np.sqrt(max(np.mean(y**2), 1e-5))


def route(y):
    return np.tanh(rms(y, LAYER.router_norm) / D @ LAYER.router)


def predict(h):
    C = (route(h[0]) @ LAYER.predict).reshape(S, S)
    return h + C @ h


def correct(p, b):
    c = 1 + route(b) @ LAYER.correct
    return p + c[:, None] * (b - p[0])


def per_token(f, *arrays):
    """``f`` of each token's ``[streams, D]`` or ``[D]``, stacked as the arrays are."""
    out = np.array([[f(*(a[..., b, t, :] for a in arrays)) for t in range(L)] for b in range(B)])
    return np.moveaxis(out, 2, 0) if out.ndim == 4 else out


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (lambda: altup.enter(STREAMS, X[0], "float32"), lambda: per_token(enter, X[0])),
        (lambda: altup.leave(STREAMS, X, "float32"), lambda: per_token(leave, X)),
        (lambda: altup.predict(LAYER, X, "float32"), lambda: per_token(predict, X)),
        (lambda: altup.correct(LAYER, X, X[1], "float32"), lambda: per_token(correct, X, X[1])),
        (lambda: altup.scaled_output(LAYER, X[0]), lambda: X[0] * LAYER.output_scale),
        (lambda: altup.laurel(LAYER, X[0], "float32"), lambda: per_token(laurel, X[0])),
        (lambda: altup.sparse(X[0], 0.9), lambda: per_token(sparse, X[0])),
    ],
    ids=["enter", "leave", "predict", "correct", "scaled_output", "laurel", "sparse"],
)
def test_formulas(actual, expected):
    np.testing.assert_allclose(np.asarray(actual()), expected(), atol=2e-5, rtol=0)


def enter(x):
    return np.stack([x, *(scaled_to(x, x @ m) for m in STREAMS.entry)])


def leave(h):
    return np.mean([h[0], *(scaled_to(h[0], y @ m) for y, m in zip(h[1:], STREAMS.exit, strict=True))], 0)


def laurel(n):
    return n + rms(n @ LAYER.laurel_left @ LAYER.laurel_right, LAYER.laurel_post_norm)


def sparse(gate):
    # The 0.9 quantile of the normal distribution.
    return np.maximum(gate - gate.mean() - gate.std() * 1.2815516, 0)


def test_a_stream_of_zeros_stays_finite():
    out = altup.leave(STREAMS, np.concatenate([X[:1], 0 * X[1:]]), "float32")
    np.testing.assert_allclose(np.asarray(out), X[0] / S, atol=1e-6)


def test_a_new_layer_predicts_the_streams_themselves_and_corrects_all_of_them():
    layer = spec.init(jax.random.key(0), altup.layer_weights(C))
    np.testing.assert_array_equal(np.asarray(altup.predict(layer, X, "float32")), X)
    np.testing.assert_allclose(np.asarray(altup.correct(layer, X, X[1], "float32")), X + X[1] - X[0], atol=1e-6)


def test_a_decoder_without_streams_has_no_weights_for_them():
    with pytest.raises(ValueError, match="altup is None"):
        altup.weights(replace(C, altup=None))
