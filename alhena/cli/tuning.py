"""Commands that adapt and measure a model: tune, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhena.cli.arguments import StageCommand, check_name, load_recipe, model_folder

if TYPE_CHECKING:
    from alhena.align.sft import Tune as Settings


@dataclass(frozen=True)
class Tune(StageCommand):
    """Supervised fine-tuning. Without --data: of RUN/models/base on the run's own chats, as RUN/models/assistant.

    With --data: of a finished model on your own documents, as a model folder NAME beside it (docs/your-data.md). FOLDER is then a run
    folder or a model folder, such as an imported one. The flags below need --data.
    """

    data: Path | None = None  # your documents, as written by `alhena curate`
    name: str = "mine"  # name of the new model
    base: str = "assistant"  # name of the model to start from, in a run folder
    steps: int = 300  # optimizer steps
    learning_rate: float | None = None  # peak learning rate; default: 2e-4, for all weights of an imported model 2e-5
    lora: int | None = None  # rank of adapters, trained in place of all weights; 4-bit models need it (QLoRA)
    lora_alpha: float | None = None  # factor of the adapters times their rank; default: twice the rank
    tokens: int = 512  # tokens of a sequence, for an imported model
    batch_size: int = 4  # sequences of a step, for an imported model

    def __call__(self) -> None:
        from alhena.own_data import run_of, tune_on_documents
        from alhena.pipeline import make_assistant
        from alhena.stages import locked

        if self.data is None:
            with self.open_run() as run:
                make_assistant(run, self.folder)
            return
        base = model_folder(self.folder, self.base)
        check_name(self.name, base)
        with locked(run_of(base)):
            facts = tune_on_documents(base, self.data, self.name, self._settings(base))
        self._report(facts, base.parent / self.name)

    def _settings(self, base: Path) -> Settings:
        """Settings of the fine-tuning of a model folder."""
        from alhena.align import sft
        from alhena.model.weights import read_config
        from alhena.tokens.encoders import is_own
        from alhena.train.optimizer import Optimizer

        is_imported = not is_own(base)
        if self.lora is None and self.lora_alpha is not None:
            raise ValueError("--lora-alpha needs --lora")
        lora = None if self.lora is None else sft.LoraOptions(self.lora, self.lora_alpha or 2.0 * self.lora)
        learning_rate = self.learning_rate or (2e-5 if is_imported and lora is None else 2e-4)
        if is_imported:
            shape = sft.shape_for(read_config(base)[0], self.batch_size, self.tokens)
            return sft.Tune(self.steps, shape, Optimizer(learning_rate, warmup=20, schedule="cosine"), lora=lora)
        t = load_recipe(self.recipe).tune
        optimizer = replace(t.optimizer, learning_rate=learning_rate)
        return replace(t, steps=self.steps, weights=None, optimizer=optimizer, lora=lora)

    def _report(self, facts: Mapping[str, Any], model: Path) -> None:
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
        print(f"the model: {model}")
        print(f"next: alhena evaluate {model} --data HELD_OUT")
        print(f"      alhena chat {model}")


@dataclass(frozen=True)
class Evaluate(StageCommand):
    """Measure models. Without flags: the report card of the assistant and its 4-bit form, in RUN/report.

    With --name: the report card of one model, in RUN/reports/NAME. With --data: exact match, WER, CER and perplexity on your own
    held-out documents, in RUN/held_out/NAME; FOLDER may then be a model folder, such as an imported one.
    """

    data: Path | None = None  # your held-out documents, as written by `alhena curate --held-out`
    name: str | None = None  # name of the model; with --data the default is assistant

    def __call__(self) -> None:
        from alhena.own_data import report_on, run_of
        from alhena.pipeline import ASSISTANT, make_report
        from alhena.stages import locked

        if self.data is None and self.name is None:
            with self.open_run() as run:
                make_report(run, self.folder)
            return
        model = model_folder(self.folder, self.name or ASSISTANT)
        if self.data is not None:
            from alhena.evaluate.held_out import evaluate_held_out

            with locked(run_of(model)):
                evaluate_held_out(self.data, model, run_of(model) / "held_out" / model.name)
            return
        with self.open_run():
            print(f"Report card: {report_on(self.folder, model) / 'report.html'} and report.png")
