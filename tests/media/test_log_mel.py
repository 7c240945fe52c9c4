"""Log-mel frames of long audio."""

from __future__ import annotations

import numpy as np
import pytest

from alhena.model import config
from alhena.tokens import audio_features
from tests.media.inputs import tone


@pytest.mark.parametrize("c", [config.Conformer(8, 1, 1, 8), config.Usm(8, 1, 1, 8)], ids=["small", "usm"])
def test_frames_computed_in_blocks_equal_those_computed_at_once(
    c: config.Conformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tone(2.345) + np.random.default_rng(0).normal(0, 0.1, 37_520).astype(np.float32)
    whole = audio_features.log_mel(samples, c)
    assert whole.shape == (235, c.mels)
    monkeypatch.setattr(audio_features, "FRAMES_PER_BLOCK", 50)
    np.testing.assert_allclose(audio_features.log_mel(samples, c), whole, atol=1e-5)
    assert audio_features.log_mel(samples[:0], c).shape == (1, c.mels)
