"""Static shapes of batches, and batches of one padded example a sequence: what prompts and scoring need, without grain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alhena.batch import Batch, Example
from alhena.shapes import Bool, Int

if TYPE_CHECKING:
    from alhena.tokens.examples.store import Examples

TOKEN_FIELDS = ("tokens", "targets", "weights", "modality")
PATCH_FIELDS = ("patches", "patch_positions", "patch_images")
CHUNK_FIELDS = ("frames", "frame_lengths")
_UNITS = {"tokens": "tokens", "patches": "image patches", "frames": "chunks of audio"}
# Images of one document: makes image numbers unique within a packed sequence.
MAX_IMAGES = 256


@dataclass(frozen=True)
class BatchShape:
    """Static shape of a batch: the batch size, and for each packed sequence the budgets of tokens, patches and audio chunks."""

    batch_size: int
    tokens: int
    patches: int
    chunks: int

    @property
    def budgets(self) -> dict[str, int]:
        """Budgets of one packed sequence, by the field of an Example that each bounds."""
        return {"tokens": self.tokens, "patches": self.patches, "frames": self.chunks}

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch_size * self.tokens

    def fits(self, example: Example) -> bool:
        return all(len(getattr(example, name)) <= budget for name, budget in self.budgets.items())

    def _exceeds(self, examples: Examples) -> Bool[np.ndarray, "examples 3"]:
        """Whether each example exceeds each budget; running text, which is split, exceeds that of tokens only with its header."""
        header = examples.lengths("header")
        exceeds = examples.sizes() > [*self.budgets.values()]
        exceeds[:, 0] &= (header == 0) | (header >= self.tokens)
        return exceeds

    def fitting(self, examples: Examples) -> Int[np.ndarray, "windows 3"]:
        """The examples that fit, by their lengths alone; longer running text as several windows.

        Of each: the index of the example, the start of the window and its size, as ``Example.window`` takes them.
        """
        indices = np.flatnonzero(~self._exceeds(examples).any(1))
        length, header = examples.lengths("tokens")[indices], examples.lengths("header")[indices]
        step = self.tokens - header
        counts = np.maximum(-(-(length - header) // step), 1)
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        sizes = np.repeat(step, counts)
        return np.stack([np.repeat(indices, counts), nth * sizes, sizes], 1)

    def left_out(self, examples: Examples) -> dict[str, int]:
        """Number of examples that do not fit, by the budgets that they exceed; empty when all fit."""
        out = {}
        for kind, count in zip(*np.unique(self._exceeds(examples), axis=0, return_counts=True), strict=True):
            named = zip(kind, self.budgets.items(), strict=True)
            reasons = [f"{budget} {_UNITS[name]}" for exceeded, (name, budget) in named if exceeded]
            if reasons:
                out["more than " + " and ".join(reasons)] = int(count)
        return out


def packed_fields(example: Example) -> dict[str, np.ndarray]:
    """The fields of an example that a batch has."""
    return {name: getattr(example, name) for name in (*TOKEN_FIELDS, *PATCH_FIELDS, *CHUNK_FIELDS)}


def packed_batch(packed: Mapping[str, Any]) -> Batch:
    """The packed fields of grain as a Batch, image numbers unique within a sequence."""
    images = packed["patch_images_segment_ids"] * MAX_IMAGES + packed["patch_images"]
    return Batch(
        tokens=packed["tokens"],
        targets=packed["targets"],
        weights=packed["weights"],
        modality=packed["modality"],
        segments=packed["tokens_segment_ids"],
        positions=packed["tokens_positions"],
        patches=packed["patches"],
        patch_positions=packed["patch_positions"],
        patch_images=images * (packed["patch_images"] > 0),
        frames=packed["frames"].astype(np.float32),
        frame_lengths=packed["frame_lengths"],
    )


def padded_batch(examples: Sequence[Example], tokens: int, patches: int, chunks: int) -> Batch:
    """One example a sequence, right padded: for prompts and for scoring. Raises ValueError when an example does not fit."""
    shape = BatchShape(len(examples), tokens, patches, chunks)
    columns: dict[str, list[np.ndarray]] = {}
    for example in examples:
        if not shape.fits(example):
            sizes = len(example.tokens), len(example.patches), len(example.frames)
            raise ValueError(
                f"a prompt of {sizes[0]} tokens, {sizes[1]} patches, {sizes[2]} audio chunks; {tokens}, {patches}, {chunks} fit"
            )
        for name, value in packed_fields(example).items():
            length = tokens if name in TOKEN_FIELDS else patches if name in PATCH_FIELDS else chunks
            padded = np.zeros((length, *value.shape[1:]), value.dtype)
            padded[: len(value)] = value
            columns.setdefault(name, []).append(padded)
        valid = np.arange(tokens) < len(example.tokens)
        columns.setdefault("tokens_segment_ids", []).append(valid.astype(np.int32))
        columns.setdefault("tokens_positions", []).append(np.arange(tokens, dtype=np.int32) * valid)
        columns.setdefault("patch_images_segment_ids", []).append(np.ones(patches, np.int32))
    return packed_batch({name: np.stack(arrays) for name, arrays in columns.items()})
