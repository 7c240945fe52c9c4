"""Configurations of the vision encoders; :mod:`alhena.model.config` has them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alhena.model.config_limits import DEPTHS, SIZES, check_divides
from alhena.schema import bounded


class _Patches:
    """What the vision encoders share: they read square patches, and ``pool``² neighboring patches become one soft token."""

    patch: int
    pool: int

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.patch * self.patch * 3

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one soft token encodes."""
        return self.patch * self.pool


@dataclass(frozen=True)
class Vision(_Patches):
    """ViT on packed patches of any number of images; ``pool``² neighboring patches become one soft token."""

    width: int
    layers: int
    heads: int
    hidden: int
    patch: int = 8
    pool: int = 2
    # Maximum rows and columns of the grid of patches.
    side: int = 128
    # SigLIP's layers and positions (alhena/model/encoders/vision.py).
    plain: bool = False
    remat: bool = False
    # A soft token is the mean of its patches, normalized and projected, and every image becomes a square of side × side patches (Gemma 3).
    mean_pool: bool = False

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, hidden=SIZES, patch=(1, 256), pool=(1, 64))
        bounded(self, side=(1, 2**13))
        check_divides(self, "heads", "width")
        if self.width % 4:
            raise ValueError(f"Vision.width is {self.width}; its positions need a multiple of 4")
        if self.mean_pool:
            check_divides(self, "pool", "side")
            if not self.plain:
                raise ValueError("Vision.mean_pool is true; only a plain ViT averages its windows")

    def min_values(self, width: int) -> int:
        """Lower bound of the number of weights, for a decoder of model width ``width``."""
        positions, stem = (self.side**2, 1) if self.plain else (self.side, self.pool**2)
        values = self.layers * self.width * (3 * self.width + 2 * self.hidden) + stem * self.patch_values * self.width
        return values + positions * self.width + (1 if self.mean_pool else self.pool**2) * self.width * width


@dataclass(frozen=True)
class GemmaVision(_Patches):
    """Gemma 4's ViT: the layers of its decoder, positions in two dimensions (alhena/model/encoders/gemma_vision.py)."""

    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    patch: int = 16
    pool: int = 3
    # Maximum rows and columns of the grid of patches.
    side: int = 10_240
    rope_base: float = 100.0
    # Linear layers clamp their inputs and outputs (alhena/model/encoders/clipped.py).
    clipped: bool = False
    # Soft tokens are shifted and scaled by stored numbers.
    standardize: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, head_dim=(4, 2**16), hidden=SIZES)
        bounded(self, patch=(1, 256), pool=(1, 64), side=(1, 2**16), rope_base=(1e-6, 1e12))
        if self.head_dim % 4:
            raise ValueError(
                f"GemmaVision.head_dim is {self.head_dim}; positions in two dimensions need a multiple of 4"
            )

    def min_values(self, width: int) -> int:
        """Lower bound of the number of weights, for a decoder of model width ``width``."""
        layer = self.width * (4 * self.heads * self.head_dim + 3 * self.hidden)
        return self.layers * layer + (2 * self.side + self.patch_values + width) * self.width


@dataclass(frozen=True)
class UnifiedVision(_Patches):
    """Gemma 4 Unified's image embedder, without layers (alhena/model/encoders/unified.py)."""

    width: int
    patch: int = 16
    pool: int = 3
    # Maximum rows and columns of the grid of soft tokens.
    token_side: int = 1120

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, patch=(1, 256), pool=(1, 64), token_side=(1, 2**16))

    @property
    def side(self) -> int:
        """Maximum rows and columns of the grid of patches."""
        return self.token_side * self.pool

    def min_values(self, width: int) -> int:
        """Lower bound of the number of weights, for a decoder of model width ``width``."""
        return (self.pool**2 * self.patch_values + 2 * self.token_side + width) * self.width


VisionEncoder = Vision | GemmaVision | UnifiedVision


def vision_class(settings: Any) -> type[VisionEncoder]:
    """Class of the vision encoder that stored settings describe, by a field that only one class has."""
    if not isinstance(settings, Mapping):
        return Vision
    return UnifiedVision if "token_side" in settings else GemmaVision if "standardize" in settings else Vision
