"""Commands that adapt and measure a model: tune, evaluate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alhena.cli.arguments import StageCommand, model_folder


@dataclass(frozen=True)
class Tune(StageCommand):
    """Supervised fine-tuning. Without --data: of RUN/models/base on the run's own chats, as RUN/models/assistant.

    With --data: of a finished model on your own documents, as RUN/models/NAME (docs/your-data.md). The flags below need --data.
    """

    data: Path | None = None  # your documents, as written by `alhena curate`
    name: str = "mine"  # name of the new model
    base: str = "assistant"  # name of the model to start from
    steps: int = 300  # optimizer steps
    learning_rate: float = 2e-4  # peak learning rate; 1e-3 learns faster and forgets more

    def __call__(self) -> None:
        from alhena.own_data import tune_on_documents
        from alhena.pipeline import make_assistant

        if self.data is None:
            with self.open_run() as run:
                make_assistant(run, self.folder)
            return
        self._check_name()
        base = model_folder(self.folder, self.base)
        with self.open_run() as run:
            optimizer = replace(run.tune.optimizer, learning_rate=self.learning_rate)
            t = replace(run.tune, steps=self.steps, weights=None, optimizer=optimizer)
            facts = tune_on_documents(self.folder, base, self.data, self.name, t)
        self._report(facts)

    def _check_name(self) -> None:
        from alhena.pipeline import ASSISTANT, BASE, NANO

        reserved = (BASE, ASSISTANT, NANO, self.base)
        if not re.fullmatch(r"[\w-]+", self.name) or self.name in reserved:
            raise ValueError(
                f"--name {self.name!r}: give the new model a name of its own, of letters, digits and dashes "
                f"(not {', '.join(dict.fromkeys(reserved))})"
            )

    def _report(self, facts: Mapping[str, Any]) -> None:
        """Prints what was used, what was left out and why, the losses, and the next commands."""
        left_out = [
            f"{count} × {source}: {reason}"
            for source, reasons in facts["left_out"].items()
            for reason, count in reasons.items()
        ]
        left_out += [f"{count} × {reason}" for reason, count in facts["encoded"]["dropped"].items()]
        losses = facts["validation_nats"]
        print(f"used: {facts['examples']} examples, about {facts['epochs']:g} epochs in {facts['tuned_steps']} steps")
        print(f"left out: {'; '.join(left_out) or 'none'}")
        for source, nats in losses["before"].items():
            print(f"loss on the run's validation split, {source}: {nats:.3f} → {losses['after'][source]:.3f}")
        print(f"the model: {self.folder / 'models' / self.name}")
        print(f"next: alhena evaluate {self.folder} --name {self.name} --data HELD_OUT")
        print(f"      alhena chat {self.folder} --name {self.name}")


@dataclass(frozen=True)
class Evaluate(StageCommand):
    """Measure models. Without flags: the report card of the assistant and its 4-bit form, in RUN/report.

    With --name: the report card of one model, in RUN/reports/NAME. With --data: exact match, WER, CER and perplexity on your own
    held-out documents, in RUN/held_out/NAME.
    """

    data: Path | None = None  # your held-out documents, as written by `alhena curate --held-out`
    name: str | None = None  # name of the model; with --data the default is assistant

    def __call__(self) -> None:
        from alhena.own_data import report_on
        from alhena.pipeline import ASSISTANT, make_report

        if self.data is None and self.name is None:
            with self.open_run() as run:
                make_report(run, self.folder)
            return
        name = self.name or ASSISTANT
        model = model_folder(self.folder, name)
        with self.open_run():
            if self.data is None:
                print(f"Report card: {report_on(self.folder, model) / 'report.html'} and report.png")
                return
            from alhena.evaluate.held_out import evaluate_held_out

            evaluate_held_out(self.data, model, self.folder / "held_out" / name)
