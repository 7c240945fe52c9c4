"""The command that adapts a model: tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alhena.cli.arguments import StageCommand, check_name, load_recipe, model_folder

if TYPE_CHECKING:
    from alhena.align.sft import Tune as Settings
    from alhena.compress.distill import Distill


@dataclass(frozen=True)
class Tune(StageCommand):
    """Supervised fine-tuning. Without --data: of RUN/models/base on the run's own chats, as RUN/models/assistant.

    With --data: of a finished model on your own documents, as a model folder NAME beside it (docs/your-data.md). FOLDER is then a run
    folder or a model folder, such as an imported one. The flags below need --data. With --teacher the model also learns what a larger
    one predicts at every token of the answers.
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
    teacher: Path | None = (
        None  # a model folder with the same tokenizer, whose predictions are learned too (distillation)
    )
    soft: float | None = None  # share of the loss on the teacher's predictions, 0 to 1; default 0.7
    temperature: float | None = None  # at which both distributions are compared; default 1

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
            facts = tune_on_documents(base, self.data, self.name, self._settings(base), self._distill())
        self._report(facts, base.parent / self.name)

    def _distill(self) -> Distill | None:
        """Settings of the distillation, if a teacher is named."""
        from alhena.compress.distill import Distill
        from alhena.train.chunk_loss import Mix

        if self.teacher is None:
            if self.soft is not None or self.temperature is not None:
                raise ValueError("--soft and --temperature need --teacher, the folder of a model to learn from")
            return None
        if self.soft is not None and not 0 <= self.soft <= 1:
            raise ValueError(f"--soft {self.soft}: a share of the loss, 0 to 1")
        mix = Mix() if self.soft is None else Mix(1 - self.soft, self.soft)
        mix = mix if self.temperature is None else replace(mix, temperature=self.temperature)
        return Distill(model_folder(self.teacher, "assistant"), mix)

    def _settings(self, base: Path) -> Settings:
        """Settings of the fine-tuning of a model folder."""
        from alhena.align import sft
        from alhena.model.storage.weights import read_config
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
