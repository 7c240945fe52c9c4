"""An Example under construction: tokens with their loss weights, patches of images, frames of audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alhena.batch import Example, Modality
from alhena.model import config
from alhena.shapes import Float, Int, UInt8


def _join(arrays: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays) if arrays else empty


def empty_frames(c: config.Audio) -> Float[np.ndarray, "0 T M"]:
    """The frames of an Example without audio."""
    return np.zeros((0, c.chunk, c.frame_values), c.frame_dtype)


@dataclass
class ExampleBuilder:
    """Lists of what the fields of an Example are made of."""

    tokens: list[int] = field(default_factory=list)
    # The loss weight of each token as a target.
    weights: list[float] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)
    patch_positions: list[np.ndarray] = field(default_factory=list)
    patch_images: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    frame_lengths: list[np.ndarray] = field(default_factory=list)
    header: list[int] = field(default_factory=list)
    # Parts of its media that could not be read.
    notes: list[str] = field(default_factory=list)
    modality: Modality = Modality.TEXT

    def add(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens.extend(tokens)
        self.weights.extend([weight] * len(tokens))

    def add_header(self, tokens: Sequence[int]) -> None:
        """The tokens that running text begins with."""
        self.header = [*tokens]
        self.add(tokens, 0)

    def add_image(self, patches: UInt8[np.ndarray, "patches values"], positions: Int[np.ndarray, "patches 2"]) -> None:
        """The patches of one image; its placeholders are added as tokens."""
        self.patch_images.append(np.full(len(patches), len(self.patch_images) + 1, np.int32))
        self.patches.append(patches)
        self.patch_positions.append(positions)

    def add_audio(self, frames: Float[np.ndarray, "C T M"], lengths: Int[np.ndarray, " C"]) -> None:
        """The chunks of one audio item; its placeholders are added as tokens."""
        self.frames.append(frames)
        self.frame_lengths.append(lengths)

    def raise_modality(self, modality: Modality) -> None:
        """The modality of an Example is the highest of its parts."""
        self.modality = max(self.modality, modality)

    def example(self, pad: int, patch_values: int, no_frames: Float[np.ndarray, "0 T M"]) -> Example:
        """The Example. The weights are those of the targets; the last target is ``pad``."""
        return Example(
            tokens=np.array(self.tokens, np.int32),
            targets=np.array([*self.tokens[1:], pad], np.int32),
            weights=np.array([*self.weights[1:], 0], np.float32),
            modality=np.full(len(self.tokens), int(self.modality), np.int32),
            patches=_join(self.patches, np.zeros((0, patch_values), np.uint8)),
            patch_positions=_join(self.patch_positions, np.zeros((0, 2), np.int32)),
            patch_images=_join(self.patch_images, np.zeros(0, np.int32)),
            frames=_join(self.frames, no_frames),
            frame_lengths=_join(self.frame_lengths, np.zeros(0, np.int32)),
            header=np.array(self.header, np.int32),
        )
