"""What training tells: a progress bar, ``metrics.jsonl`` and TensorBoard, with the loss by modality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.text import Text
from tensorboardX import SummaryWriter

from alhena.pretrain.loss import Tally
from alhena.progress import progress_bar
from alhena.tokens.batch import Modality


def by_modality(tallies: list[Tally]) -> dict[str, float]:
    """Nats per weighted token of each modality that occurred, from the sums of several batches."""
    nats = np.sum([np.asarray(t.nats) for t in tallies], axis=0)
    weight = np.sum([np.asarray(t.weight) for t in tallies], axis=0)
    return {m.name.lower(): round(float(nats[m] / weight[m]), 4) for m in Modality if weight[m] > 0}


class Metrics:
    """A live display and two logs; as a context manager it closes them. Lines after ``step`` of an earlier run are dropped."""

    def __init__(self, folder: Path, title: str, steps: int, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self._progress = progress_bar()
        self._bar = self._progress.add_task(title, total=steps, completed=step)
        self._line = Text("compiling the training step …", style="dim")
        self._live = Live(Group(self._progress, self._line), refresh_per_second=2)

    def _lines(self) -> list[dict]:
        if not self._path.exists():
            return []
        out = []
        for line in self._path.read_text().splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:  # the line that a killed process was writing
                continue
        return out

    def __enter__(self) -> Metrics:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)  # type: ignore[arg-type]
        self._board.close()

    def advance(self, step: int) -> None:
        self._progress.update(self._bar, completed=step)

    def write(self, step: int, values: Mapping[str, float], losses: Mapping[str, float], prefix: str = "train") -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, "kind": prefix, **values, "loss_by_modality": dict(losses)}) + "\n")
        for name, value in {**values, **{f"loss/{k}": v for k, v in losses.items()}}.items():
            self._board.add_scalar(f"{prefix}/{name}", value, step)
        shown = [f"{k} {v:,.0f}" if v >= 100 else f"{k} {v:.3g}" for k, v in values.items()]
        shown += [f"{k} {v:.2f}" for k, v in losses.items()]
        self._line.plain = f"{prefix}: " + " · ".join(shown)
