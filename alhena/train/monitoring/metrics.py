"""Metrics of a training: a progress bar, ``metrics.jsonl`` and TensorBoard, with loss and output norm by modality.

Weights & Biases gets the same when its variable WANDB_PROJECT is set (``pip install 'alhena[wandb]'``). WANDB_MODE=offline stores it on
this machine only.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.text import Text
from tensorboardX import SummaryWriter

from alhena.batch import Modality
from alhena.files import add_line, read_json, read_lines, truncate_log
from alhena.progress import progress_bar
from alhena.train.loss import LossSums
from alhena.train.monitoring.divergence import WINDOW

FILE, FACTS = "metrics.jsonl", "training.json"


def read_facts(path: Path) -> dict[str, Any]:
    """Title, number of parameters, steps and warm-up steps of a training. Raises ValueError when one is missing."""
    return read_json(path, title=str, parameters=int, steps=int, warmup=int)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's log. Raises ValueError that names the first invalid line."""
    lines = read_lines(path, step=int, kind=str, loss_by_modality=dict)
    for number, line in enumerate(lines, 1):
        parts = {key: part for key, part in line.items() if key.endswith("_by_modality")}
        wrong = [key for key, part in parts.items() if not isinstance(part, dict) or not _numbers(part.values())]
        wrong += [key for key in line.keys() - parts.keys() - {"kind"} if not _numbers([line[key]])]
        if wrong:
            raise ValueError(
                f"{path}, line {number}: {wrong[0]!r} must be a number, or numbers by name; delete the line"
            )
    return lines


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def by_modality(batches: list[LossSums]) -> dict[str, dict[str, float]]:
    """Nats per weighted token, and root mean square of the output, of each modality that occurs in several batches."""
    nats, weight, square = (
        np.sum([np.asarray(getattr(sums, name)) for sums in batches], axis=0) for name in ("nats", "weight", "square")
    )
    present = [m for m in Modality if weight[m] > 0]
    return {
        "loss": {m.name.lower(): round(float(nats[m] / weight[m]), 4) for m in present},
        "output_norm": {m.name.lower(): round(float(np.sqrt(square[m] / weight[m])), 4) for m in present},
    }


def _wandb(folder: Path, title: str) -> Any:
    """The folder's run in the Weights & Biases project of the environment, new or resumed; None without such a project."""
    project = os.environ.get("WANDB_PROJECT")
    if not project:
        return None
    if find_spec("wandb") is None:
        raise ValueError("WANDB_PROJECT is set, but wandb is not installed: pip install 'alhena[wandb]', or unset it")
    import wandb

    name = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=6).hexdigest()
    return wandb.init(project=project, name=title, id=name, dir=str(folder), resume="allow")


class Metrics:
    """Live display, metrics.jsonl, TensorBoard, and Weights & Biases if asked for; as a context manager it closes them.

    Lines that an earlier process logged after ``step`` are dropped.
    """

    def __init__(self, folder: Path, title: str, steps: int, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self.truncate(step)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self._wandb = _wandb(folder, title)
        self._progress = progress_bar()
        self._bar = self._progress.add_task(title, total=steps, completed=step)
        self._status = Text("compiling the training step …", style="dim")
        self._live = Live(Group(self._progress, self._status), refresh_per_second=2)

    def __enter__(self) -> Metrics:
        # Elsewhere the display would be written once, at its end, without a line end; the log lines have its content.
        if self._live.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def truncate(self, step: int) -> None:
        """Drops lines of the log after ``step``."""
        truncate_log(self._path, step)
        self.recent = deque([r for r in read_metrics(self._path) if r["kind"] == "train"], WINDOW + 1)

    def print(self, text: str) -> None:
        """Prints a line above the live display."""
        self._live.console.print(text, highlight=False)

    def advance(self, step: int) -> None:
        self._progress.update(self._bar, completed=step)

    def track(self, title: str, names: Collection[str]) -> Iterator[str]:
        """The names, with a bar of their own until the last one is done: for work between two steps, such as validation."""
        bar = self._progress.add_task(title, total=len(names))
        for done, name in enumerate(names):
            self._progress.update(bar, completed=done)
            yield name
        self._progress.remove_task(bar)

    def write(
        self, step: int, values: Mapping[str, float], by_name: Mapping[str, Mapping[str, float]], kind: str = "train"
    ) -> None:
        """Logs values, and values by modality (in validation by source)."""
        nested = {f"{name}_by_modality": dict(part) for name, part in by_name.items()}
        record = {"step": step, "kind": kind, **values, **nested}
        add_line(self._path, record)
        if kind == "train":
            self.recent.append(record)
        flat = {**values, **{f"{n}/{k}": v for n, part in by_name.items() for k, v in part.items()}}
        for name, value in flat.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{kind}/{name}": value for name, value in flat.items()}, step=step)
        shown = [f"{k} {v:,.0f}" if v >= 100 else f"{k} {v:.3g}" for k, v in values.items()]
        shown += [f"{k} {v:.2f}" for k, v in by_name["loss"].items()]
        self._status.plain = f"{kind}: " + " · ".join(shown)
        self._progress.update(self._bar, note=self._status.plain)
