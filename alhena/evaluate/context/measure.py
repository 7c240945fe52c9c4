"""What `alhena context` writes: retrieval*.json of each medium, loss.json and loss.png of texts, and the report card of the maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alhena.corpus.starter.text.long_retrieval import filler as standard_filler
from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.card.write import write_card
from alhena.evaluate.context.grid import Grid
from alhena.evaluate.context.key_values import MAX_CHARACTERS_PER_TOKEN, retrieval
from alhena.evaluate.context.loss import FIRST_RANGE, loss_of_texts, plot_loss
from alhena.evaluate.context.needles import needle_map
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.facts import ModelFacts
from alhena.evaluate.models.interface import Advance
from alhena.files import write_json
from alhena.progress import progress_bar


@dataclass(frozen=True)
class Texts:
    """Long texts whose loss by position is measured over this number of windows; and the filler of the retrieval, if it is another one."""

    files: tuple[Path, ...] = ()
    windows: int = 8
    filler: Path | None = None


@dataclass(frozen=True)
class Measured:
    """A model, what is known of it, and the folder of its results."""

    model: EngineModel
    out: Path
    facts: ModelFacts = ModelFacts()


def measure(m: Measured, grids: Sequence[Grid], texts: Texts) -> None:
    """Measures every grid, and the loss of texts in windows of the longest text of a grid; prints a summary.

    Raises ValueError for a length that the model cannot read.
    """
    if (texts.files or texts.filler) and not any(g.medium == "text" for g in grids):
        raise ValueError("--texts and --filler belong to texts, and --media names none: add text")
    books = [_read(path) for path in texts.files]
    for g in grids:
        found = _with_progress(g, _task(m.model, g, texts))
        name = "retrieval" if g.medium == "text" else f"retrieval_{g.medium}"
        write_json(m.out / f"{name}.json", found.to_json() | {"model_facts": asdict(m.facts)})
        _print(found)
        if books and g.medium == "text":
            _measure_loss(m, books, max(g.lengths), texts.windows)
    write_card([m.out], m.out)


def _task(model: EngineModel, g: Grid, texts: Texts) -> Callable[[Advance], HeatMap]:
    if g.medium != "text":
        return lambda advance: needle_map(model.engine, g, advance)
    characters = (MAX_CHARACTERS_PER_TOKEN + 1) * max(g.lengths)
    filler = _read(texts.filler) if texts.filler else standard_filler(np.random.default_rng(g.seed), "test", characters)
    return lambda advance: retrieval(model, filler, g, advance)


def _with_progress(g: Grid, task: Callable[[Advance], HeatMap]) -> HeatMap:
    with progress_bar() as progress:
        bar = progress.add_task(f"questions, {g.medium}", total=g.items * len(g.lengths) * len(g.depths))
        return task(lambda done: progress.update(bar, advance=done))


def _print(found: HeatMap) -> None:
    """The map as a table, and the accuracy of all cells."""
    table = _table(found.title, [f"{found.unit} ╲ depth", *(f"{depth:g}" for depth in found.depths)])
    for length, row in zip(found.lengths, found.accuracy, strict=True):
        table.add_row(f"{length:,}", *map(found.shown, row))
    low, high = found.mean_interval
    chance = "" if found.chance is None else f", chance {found.chance} %"
    console = Console()
    console.print(table)
    console.print(f"{found.name}: {found.mean} % [{low}, {high}], lowest cell {min(found.cells)} %{chance}")


def _table(title: str, columns: Sequence[str]) -> Table:
    """A table of numbers without rows."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _measure_loss(m: Measured, books: Sequence[str], length: int, windows: int) -> None:
    with progress_bar() as progress:
        bar = progress.add_task("parts of the texts", total=windows)
        losses = loss_of_texts(m.model, books, length, windows, lambda done: progress.update(bar, advance=done))
    write_json(m.out / "loss.json", losses)
    plot_loss(losses, m.out / "loss.png")
    first, last = losses["nats"][0], losses["nats"][-1]
    console = Console()
    console.print(
        f"loss by position: {first} nats per token in the first {FIRST_RANGE} tokens, {last} in the last range"
    )
    console.print(_context_table(losses["same_tokens"]))


def _context_table(same: Mapping[str, Any]) -> Table:
    """Loss of the same tokens after more and more context, compared with the shortest and with the one before."""
    contexts = same["contexts"]
    columns = ["context", "loss", f"minus that of {contexts[0]:,}", "minus that of the row before"]
    table = _table(f"the same {same['tokens']:,} tokens, nats per token", columns)
    for n, context in enumerate(contexts):
        differences = [
            f"{d['nats'][n]:+} ± {d['standard_error'][n]}" for d in (same["difference"], same["from_context_before"])
        ]
        table.add_row(f"{context:,}", str(same["nats"][n]), *(differences if n else ()))
    return table


def _read(path: Path) -> str:
    """A text file. Raises ValueError that names it when it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no text in UTF-8 ({error})") from None
