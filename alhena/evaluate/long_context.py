"""How a model uses its context: key-value retrieval by length and depth, and loss by position on long texts.

    pairs at a depth of a long text, a question after it ─► accuracy by length and depth   a heat map, retrieval.png
    long running text                                    ─► nats per token by position     a curve, loss.png

After the Gemini 1.0 report, section 5.1.5: the value of a key from the beginning of 32,768 tokens (98 %), and the negative log-likelihood
of long documents by position.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from alhena import plots
from alhena.content import Content, Text
from alhena.corpus.starter.text.long_retrieval import filler as standard_filler
from alhena.corpus.starter.text.long_retrieval import haystack, question
from alhena.corpus.starter.text.retrieval import VALUES, draw_pairs
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Advance, Completed, Completion, no_advance
from alhena.evaluate.statistics import wilson
from alhena.files import write_json
from alhena.progress import progress_bar
from alhena.schema import bounded

# Keys of a document, all of them asked for.
PAIRS = 10
ANSWER_TOKENS = 24
# Characters of a token, at most: of a text that surely fills a context.
MAX_CHARACTERS_PER_TOKEN = 8
# The first positions whose loss is measured; each next range is twice as long.
FIRST_RANGE = 64


@dataclass(frozen=True)
class Grid:
    """Lengths in tokens, depths of the pairs (0: at the beginning, 1: right before the question), and items of each cell."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    items: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        bounded(self, items=(1, 10**5))
        if not (self.lengths and all(256 <= n <= 2**22 for n in self.lengths)):
            raise ValueError(f"lengths {self.lengths}: one or more, of 256 tokens or more, are needed")
        if not (self.depths and all(0 <= depth <= 1 for depth in self.depths)):
            raise ValueError(f"depths {self.depths}: one or more from 0 to 1 are needed")


def _fitted(model: EngineModel, pairs: Mapping[str, str], filler: str, depth: float, length: int) -> str:
    """The document with as much of the filler as its tokens, with a question, allow. Raises ValueError when the filler is too short."""
    longest = max(pairs, key=len)

    def tokens(characters: int) -> int:
        text = haystack(pairs, filler[:characters], depth)
        prompt = [Content("user", (Text(f"{text}\n{question(longest)}"),))]
        return len(model.engine.encoder.prompt(prompt).tokens)

    fitting = bisect_right(range(len(filler) + 1), length, key=tokens) - 1
    if fitting == len(filler):
        raise ValueError(
            f"the filler has {len(filler):,} characters, fewer than {length:,} tokens need: give a longer one"
        )
    return haystack(pairs, filler[: max(fitting, 0)], depth)


def is_right(answer: str, value: str) -> bool:
    """Whether an answer names the value, and no other one.

    >>> is_right("The word for moon is River.", "river"), is_right("river, or glass", "river"), is_right("stone", "river")
    (True, False, False)
    """
    return set(re.findall(r"\w+", answer.lower())) & set(VALUES) == {value}


def _accuracy(model: EngineModel, filler: str, cell: tuple[int, float], g: Grid, advance: Advance) -> float:
    """The percentage of right answers in one cell."""
    length, depth = cell
    right = asked = 0
    for number in range(-(-g.items // PAIRS)):
        rng = np.random.default_rng([g.seed, length, round(1000 * depth), number])
        pairs = draw_pairs(rng, PAIRS, "test")
        # Another part of the filler for each document.
        start = int(rng.integers(max(1, len(filler) - MAX_CHARACTERS_PER_TOKEN * length)))
        text = _fitted(model, pairs, filler[start : start + MAX_CHARACTERS_PER_TOKEN * length], depth, length)
        keys = list(pairs)[: g.items - asked]
        prompts = [(Text(f"{text}\n{question(key)}"),) for key in keys]
        answers = model.complete([Completion(prompt, ANSWER_TOKENS) for prompt in prompts], advance)
        if reason := next((answer for answer in answers if isinstance(answer, str)), None):
            raise ValueError(f"{length:,} tokens: {reason}")
        texts = [answer.text for answer in answers if isinstance(answer, Completed)]
        right += sum(is_right(text, pairs[key]) for text, key in zip(texts, keys, strict=True))
        asked += len(keys)
    return 100 * right / asked


def retrieval(model: EngineModel, filler: str, g: Grid, advance: Advance = no_advance) -> dict[str, Any]:
    """Accuracy in percent by length and depth. Raises ValueError for a length that the model cannot read."""
    if max(g.lengths) > model.engine.max_prompt_tokens:
        raise ValueError(
            f"{model.name} reads at most {model.engine.max_prompt_tokens:,} tokens: choose shorter lengths"
        )
    accuracy = [[_accuracy(model, filler, (n, depth), g, advance) for depth in g.depths] for n in g.lengths]
    cells = [value / 100 for row in accuracy for value in row]
    low, high = wilson(float(np.mean(cells)), g.items * len(cells))
    return {
        "model": model.name,
        "lengths": list(g.lengths),
        "depths": list(g.depths),
        "accuracy": [[round(value, 2) for value in row] for row in accuracy],
        "items": g.items,
        "pairs": PAIRS,
        "chance": round(100 / PAIRS, 1),
        "mean": round(100 * float(np.mean(cells)), 2),
        "interval": [round(100 * low, 2), round(100 * high, 2)],
        "lowest": round(100 * min(cells), 2),
    }


def plot_retrieval(result: Mapping[str, Any], path: Path) -> None:
    """A heat map with the accuracy in each cell: lengths from left to right, depths from top to bottom."""
    accuracy = np.array(result["accuracy"]).T
    figure = plots.figure(1.6 + 0.8 * len(result["lengths"]), 1.5 + 0.5 * len(result["depths"]))
    axes = figure.subplots()
    image = axes.imshow(accuracy, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(accuracy):
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color="white" if value < 60 else "black")
    axes.set_xticks(range(len(result["lengths"])), [f"{n:,}" for n in result["lengths"]])
    axes.set_yticks(range(len(result["depths"])), [f"{100 * depth:.0f} %" for depth in result["depths"]])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth of the pairs")
    axes.set_title(f"Key-value retrieval, {result['model']}, {result['items']} items a cell", fontsize=10)
    figure.colorbar(image, ax=axes, label="right answers, %")
    plots.save(figure, path)


def ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions, each twice as long as the one before.

    >>> ranges(300)
    [(0, 64), (64, 128), (128, 256), (256, 300)]
    """
    edges = [0, FIRST_RANGE]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return list(pairwise(edges))


def loss_by_position(
    model: EngineModel, texts: Sequence[str], length: int, windows: int, advance: Advance = no_advance
) -> dict[str, Any]:
    """Nats per token of running text by range of positions, over windows of the texts.

    Raises ValueError when no text has a window.
    """
    encoded = [model.engine.encoder.tokenizer.encode(text) for text in texts]
    starts = [(ids, start) for ids in encoded for start in range(0, len(ids) - length + 1, length)]
    if not starts:
        raise ValueError(f"no text has {length:,} tokens; give longer ones, or a shorter length")
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, min(windows, len(starts))).astype(int)]
    beginning, spans = model.beginning(), ranges(length)
    nats = np.zeros((len(chosen), len(spans) + 1))
    for n, (ids, start) in enumerate(chosen):
        window = [*beginning, *ids[start : start + length]]
        # All continuations end with the window, so it is computed once; differences are the losses of the ranges.
        scored = model.score([(window[: len(beginning) + a], window[len(beginning) + a :]) for a, _ in spans], advance)
        nats[n, : len(spans)] = [-likelihood.nats for likelihood in scored]
    means = (nats[:, :-1] - nats[:, 1:]) / np.array([b - a for a, b in spans])
    error = means.std(0, ddof=1) / np.sqrt(len(chosen)) if len(chosen) > 1 else np.zeros(len(spans))
    return {
        "model": model.name,
        "windows": len(chosen),
        "positions": [list(span) for span in spans],
        "nats": [round(float(value), 4) for value in means.mean(0)],
        "standard_error": [round(float(value), 4) for value in error],
    }


@dataclass(frozen=True)
class Texts:
    """Long texts whose loss by position is measured over this number of windows; and the filler of the retrieval, if it is another one."""

    files: tuple[Path, ...] = ()
    windows: int = 8
    filler: Path | None = None


def plot_loss(result: Mapping[str, Any], path: Path) -> None:
    """Nats per token by position, on a logarithmic axis, with standard errors."""
    figure = plots.figure(6.4, 3.6)
    axes = figure.subplots()
    middle = [float(np.sqrt(max(a, 8) * b)) for a, b in result["positions"]]
    axes.errorbar(
        middle, result["nats"], yerr=result["standard_error"], color=plots.BLUE, marker="o", markersize=4, capsize=2
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position, tokens")
    axes.set_ylabel("nats per token")
    axes.set_title(f"Loss by position, {result['model']}, {result['windows']} windows", fontsize=10)
    plots.hide_spines(axes)
    plots.save(figure, path)


def measure(model: EngineModel, g: Grid, texts: Texts, out: Path) -> None:
    """Writes retrieval.json and retrieval.png, with texts loss.json and loss.png too; prints a summary."""
    console, longest = Console(), max(g.lengths)
    characters = (MAX_CHARACTERS_PER_TOKEN + 1) * longest
    filler = _read(texts.filler) if texts.filler else standard_filler(np.random.default_rng(g.seed), "test", characters)
    books = [_read(path) for path in texts.files]
    with progress_bar() as progress:
        bar = progress.add_task("questions", total=g.items * len(g.lengths) * len(g.depths))
        result = retrieval(model, filler, g, lambda done: progress.update(bar, advance=done))
    write_json(out / "retrieval.json", result)
    plot_retrieval(result, out / "retrieval.png")
    low, high = result["interval"]
    console.print(f"key-value retrieval: {result['mean']} % [{low}, {high}], lowest cell {result['lowest']} %")
    if books:
        with progress_bar() as progress:
            bar = progress.add_task("ranges of positions", total=None)
            losses = loss_by_position(
                model, books, longest, texts.windows, lambda done: progress.update(bar, advance=done)
            )
        write_json(out / "loss.json", losses)
        plot_loss(losses, out / "loss.png")
        first, last = losses["nats"][0], losses["nats"][-1]
        console.print(
            f"loss by position: {first} nats per token in the first {FIRST_RANGE} tokens, {last} in the last range"
        )


def _read(path: Path) -> str:
    """A text file. Raises ValueError that names it when it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no text in UTF-8 ({error})") from None
