"""BEST-RQ: targets are fixed and diverse, only masked vectors are scored, the loss falls, resumed = uninterrupted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.batch import Example
from alhena.model import config
from alhena.model.encoders import conformer, usm
from alhena.tokens.examples.store import Examples, write_examples
from alhena.train.components.best_rq import BestRq, BestRqParams, loss, masked_spans, pretrain_audio_encoder, targets
from alhena.train.optimizer import Optimizer

C = config.Conformer(width=32, layers=1, heads=2, hidden=64, mels=16, chunk=64)
T = BestRq(
    steps=60,
    batch_size=8,
    codes=32,
    mask_probability=0.1,
    mask_span=4,
    optimizer=Optimizer(learning_rate=1e-2, warmup=5),
    save_every=20,
)


def tones(count: int) -> np.ndarray:
    """Log-mel frames of tones that last: a masked frame can be predicted from its neighbors."""
    rng = np.random.default_rng(0)
    bins = np.repeat(rng.integers(0, 4, (count, 4)), 16, axis=1) * 4
    return (np.eye(16)[bins] + 0.02 * rng.standard_normal((count, 64, 16))).astype(np.float16)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Examples]:
    def example(frames: np.ndarray) -> Example:
        none = np.zeros(1, np.int32)
        return Example(
            tokens=none, targets=none, weights=np.zeros(1, np.float32), modality=none,
            patches=np.zeros((0, 1), np.uint8), patch_positions=np.zeros((0, 2), np.int32), patch_images=np.zeros(0, np.int32),
            frames=frames[None], frame_lengths=np.array([64], np.int32), header=none[:0],
        )  # fmt: skip

    write_examples(tmp_path / "a.arrow", map(example, tones(24)), {"patches": (1,), "frames": (64, 16)})
    return {"a": Examples(tmp_path / "a.arrow")}


def test_targets_are_fixed_and_diverse():
    frames = np.random.default_rng(0).normal(size=(8, 64, 16)).astype(np.float32)
    codes = np.asarray(targets(frames, T))
    assert codes.shape == (8, 16) and len(np.unique(codes)) > T.codes // 2
    np.testing.assert_array_equal(codes, targets(frames * 3 + 1, T))  # they do not depend on loudness
    assert not np.array_equal(codes, targets(frames, replace(T, seed=1)))


def test_masks_cover_complete_spans_and_about_the_expected_share():
    masked = np.asarray(masked_spans(jax.random.key(0), (400, 64), T))
    assert masked[:, T.mask_span :].mean() == pytest.approx(1 - (1 - T.mask_probability) ** T.mask_span, abs=0.02)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(masked[:, : -T.mask_span].reshape(-1), 1).astype(int))))[::2]
    assert np.median(runs) >= T.mask_span


@pytest.mark.parametrize("c", [C, config.Usm(32, 1, 2, 64, mels=16, chunk=64, channels=(4, 4), block=4, left=4)])
def test_only_masked_and_valid_vectors_are_scored(c):
    """With zero logits the loss is log(codes), the mean over masked vectors alone; without valid frames it is 0."""
    encoder = (usm if isinstance(c, config.Usm) else conformer).init(jax.random.key(0), c, 8)
    trainable = BestRqParams(encoder, np.zeros((32, T.codes), np.float32))
    frames, lengths = tones(8).astype(np.float32), np.full(8, 64)
    key = jax.random.key(3)
    assert float(loss(trainable, frames, lengths, key, c, T)) == pytest.approx(np.log(T.codes), rel=1e-5)
    nothing = loss(trainable, frames, 0 * lengths, key, c, T)
    assert float(nothing) == 0


def test_it_learns_and_resumed_equals_uninterrupted(sources, tmp_path):
    initial = conformer.init(jax.random.key(0), C, 8)
    copy = lambda: jax.tree.map(lambda x: x.copy(), initial)  # noqa: E731
    uninterrupted, facts = pretrain_audio_encoder(copy(), C, T, sources, tmp_path / "uninterrupted")
    assert facts["nats"][1] < 0.7 * facts["nats"][0]
    pretrain_audio_encoder(copy(), C, T, sources, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(T.steps))  # as if it had been killed before the end
    resumed, _ = pretrain_audio_encoder(copy(), C, T, sources, tmp_path / "resumed")
    for a, b in zip(jax.tree.leaves(uninterrupted), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
