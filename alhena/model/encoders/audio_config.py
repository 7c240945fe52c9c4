"""Configurations of the audio encoders; :mod:`alhena.model.config` has them too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alhena.model.config_limits import DEPTHS, SIZES, check_divides
from alhena.schema import bounded, shown

# Universal Speech Models: ours, and those of open weights (alhena/model/encoders/usm.py).
USM_VARIANTS = ("usm", "gemma3n", "gemma4")


@dataclass(frozen=True)
class Conformer:
    """Conformer on chunks of log-mel frames: two stride-2 convolutions, then ``stack`` neighbors become one soft token."""

    width: int
    layers: int
    heads: int
    hidden: int
    kernel: int = 5
    mels: int = 128
    # Frames of 10 ms per chunk; attention is inside a chunk.
    chunk: int = 128
    stack: int = 2
    remat: bool = False

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, hidden=SIZES, kernel=(1, 2**12), mels=(1, 2**12))
        bounded(self, chunk=(4, 2**20), stack=(1, 2**10))
        check_divides(self, "heads", "width")
        check_divides(self, "frames_per_token", "chunk")

    @property
    def frames_per_token(self) -> int:
        return 4 * self.stack

    @property
    def frame_values(self) -> int:
        """Numbers in a frame."""
        return self.mels

    @property
    def frame_dtype(self) -> str:
        """Dtype of the frames in examples."""
        return "float16"

    def min_values(self, width: int) -> int:
        """Lower bound of the number of weights, for a decoder of model width ``width``."""
        return self.layers * self.width * (3 * self.width + 2 * self.hidden)

    def tokens(self, frames: int) -> int:
        """Number of soft tokens of a chunk with that many valid frames."""
        return math.ceil(frames / self.frames_per_token)


@dataclass(frozen=True)
class Usm(Conformer):
    """The conformer of the Universal Speech Model (alhena/model/encoders/usm.py): local attention, audio of any length."""

    chunk: int = 1024
    stack: int = 4
    # Of the two convolutions.
    channels: tuple[int, int] = (128, 32)
    # Queries that share a window of keys.
    block: int = 12
    # Vectors that a query attends to: up to its own, and after it.
    left: int = 13
    right: int = 0
    # Scores s become cap·tanh(s / cap).
    cap: float = 50.0
    # One of USM_VARIANTS: features, convolutions, scale of the keys, norms around the projection to the model width.
    variant: str = "usm"
    # Linear layers clip their inputs and outputs (alhena/model/encoders/clipped.py).
    clipped: bool = False
    # Width of a linear layer with bias after the last layer; None: there is none.
    output: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, block=(1, 2**16), left=(1, 2**16), right=(0, 2**16), cap=(1e-6, 1e12), output=SIZES)
        if self.variant not in USM_VARIANTS:
            raise ValueError(f"Usm.variant is {shown(self.variant)}; one of {', '.join(USM_VARIANTS)}")
        if not all(1 <= n <= 2**16 for n in self.channels):
            raise ValueError(f"Usm.channels is {self.channels}; each must be 1 to {2**16}")
        if self.mels % 4 or self.width % 2:
            raise ValueError(f"Usm: {self.mels} mels and a width of {self.width}; multiples of 4 and of 2 are needed")

    @property
    def frame_dtype(self) -> str:
        return "float16" if self.variant == "usm" else "float32"

    def tokens(self, frames: int) -> int:
        """Gemma 3n has as many of every audio: those after its end are all the same."""
        full = self.variant == "gemma3n" and frames
        return super().tokens(self.chunk if full else frames)


@dataclass(frozen=True)
class UnifiedAudio:
    """No encoder: each soft token is a projection of raw samples (alhena/model/encoders/unified_audio.py)."""

    # At 16 kHz.
    samples_per_token: int = 640
    # Soft tokens per chunk.
    chunk: int = 25

    def __post_init__(self) -> None:
        bounded(self, samples_per_token=SIZES, chunk=(1, 2**20))

    @property
    def frame_values(self) -> int:
        """Numbers in a frame, which becomes one soft token."""
        return self.samples_per_token

    @property
    def frame_dtype(self) -> str:
        """Dtype of the frames in examples."""
        return "float32"

    def min_values(self, width: int) -> int:
        """Lower bound of the number of weights, for a decoder of model width ``width``."""
        return self.samples_per_token * width

    def tokens(self, frames: int) -> int:
        """Number of soft tokens of a chunk with that many valid frames."""
        return frames


# Configuration of any audio encoder.
Audio = Conformer | UnifiedAudio


def audio_class(settings: Any) -> type[Audio]:
    """Class of the audio encoder that stored settings describe, by a field that only one class has."""
    fields = settings if isinstance(settings, Mapping) else ()
    return UnifiedAudio if "samples_per_token" in fields else Usm if "channels" in fields else Conformer
