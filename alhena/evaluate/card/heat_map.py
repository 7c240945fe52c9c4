"""A map of accuracy by length and depth, with the mean and the intervals of its cells; stored as retrieval*.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from alhena.evaluate.results import ReportRow
from alhena.evaluate.statistics import wilson

MAX_CELLS = 64


@dataclass(frozen=True)
class HeatMap:
    """Accuracy in percent by length of the prompt and depth of what is asked; ``items`` of each cell."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    # A row for each length.
    accuracy: tuple[tuple[float, ...], ...]
    items: int
    name: str = "key-value retrieval"
    model: str = ""
    # Of a cell, in percent.
    chance: float | None = None
    # Of the lengths.
    unit: str = "tokens"

    def __post_init__(self) -> None:
        shape = (len(self.accuracy), *{len(row) for row in self.accuracy})
        if (
            shape != (len(self.lengths), len(self.depths))
            or not 0 < len(self.lengths) * len(self.depths) <= MAX_CELLS**2
        ):
            raise ValueError(f"accuracy has a row for each of {len(self.lengths)} lengths and in it a number for each of {len(self.depths)} depths")  # fmt: skip

    @property
    def cells(self) -> list[float]:
        return [value for of_length in self.accuracy for value in of_length]

    @property
    def mean(self) -> float:
        return round(sum(self.cells) / len(self.cells), 2)

    def interval(self, value: float, cells: int = 1) -> tuple[float, float]:
        """The 95 % interval of the accuracy of that many cells, in percent."""
        low, high = wilson(value / 100, self.items * cells)
        return round(100 * low, 2), round(100 * high, 2)

    @property
    def mean_interval(self) -> tuple[float, float]:
        return self.interval(self.mean, len(self.cells))

    @property
    def title(self) -> str:
        of_model = f", {self.model}" if self.model else ""
        return f"{self.name}{of_model}: accuracy % by {self.unit} and depth, {self.items:,} items a cell"

    def shown(self, value: float) -> str:
        """A cell with its interval."""
        low, high = self.interval(value)
        return f"{value:.0f} [{low:.0f}, {high:.0f}]"

    def row(self) -> ReportRow | None:
        """All cells as a row of the card; None where model or chance level are not known."""
        if not self.model or self.chance is None:
            return None
        span = " to ".join(f"{length:,}" for length in sorted({min(self.lengths), max(self.lengths)}))
        name = f"{self.name}, {span} {self.unit}"
        return ReportRow(
            "long context", name, "accuracy", False, self.items * len(self.cells), self.chance,
            {self.model: self.mean}, {self.model: self.mean_interval}, binary=True,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The content of its file: the fields, and what follows from them."""
        intervals = [[self.interval(value) for value in of_length] for of_length in self.accuracy]
        of_all = {"mean": self.mean, "interval": self.mean_interval, "lowest": min(self.cells)}
        return asdict(self) | of_all | {"intervals": intervals}
