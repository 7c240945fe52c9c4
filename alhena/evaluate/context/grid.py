"""The cells of an experiment: lengths and depths of one medium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alhena.corpus.starter import needles
from alhena.schema import bounded

Medium = Literal["text", "audio", "video"]
UNITS: dict[Medium, str] = {"text": "tokens", "audio": needles.UNITS["audio"], "video": needles.UNITS["video"]}
# Lengths that can be asked for, and those that are measured where none are named.
BOUNDS: dict[Medium, tuple[int, int]] = {
    "text": (256, 2**22),
    "audio": (needles.SHORTEST["audio"], 3600),
    "video": (needles.SHORTEST["video"], 2**14),
}
LENGTHS: dict[Medium, tuple[int, ...]] = {
    "text": (1024, 2048, 4096, 8192, 16384, 32768),
    "audio": (2, 5, 10, 20, 30, 60),
    "video": (2, 6, 12, 24, 48),
}


@dataclass(frozen=True)
class Grid:
    """A medium; lengths in its unit, depths of what is asked (0: at the beginning, 1: at the end), and items of each cell."""

    lengths: tuple[int, ...] = LENGTHS["text"]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    items: int = 50
    seed: int = 0
    medium: Medium = "text"

    def __post_init__(self) -> None:
        bounded(self, items=(1, 10**5))
        least, most = BOUNDS[self.medium]
        if not (self.lengths and all(least <= n <= most for n in self.lengths)):
            raise ValueError(f"lengths {self.lengths}: one or more from {least} to {most:,} {self.unit} are needed")
        if not (self.depths and all(0 <= depth <= 1 for depth in self.depths)):
            raise ValueError(f"depths {self.depths}: one or more from 0 to 1 are needed")

    @property
    def unit(self) -> str:
        return UNITS[self.medium]
