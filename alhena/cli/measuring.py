"""Commands that measure models: evaluate, compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alhena.cli.arguments import Folder, StageCommand, model_folder


@dataclass(frozen=True)
class Evaluate(StageCommand):
    """Measure models. Without flags: the report card of the assistant and its 4-bit form, in RUN/report.

    With --name: the report card of one model, in RUN/reports/NAME. With --data: exact match, WER, CER and perplexity on your own
    held-out documents, in RUN/held_out/NAME; FOLDER may then be a model folder, such as an imported one.

    With --tasks and --data: public benchmarks, each read from the folder of its name under --data, in RUN/benchmarks/NAME
    (docs/evaluation.md lists them and their files). The flags below belong to --tasks.
    """

    # your held-out documents, as written by `alhena curate --held-out`; with --tasks: a folder of benchmarks
    data: Path | None = None
    name: str | None = None  # name of the model; with --data the default is assistant
    tasks: str | None = None  # benchmarks, separated by commas, such as gsm8k,mmlu
    out: Path | None = None  # folder for the results; left out: RUN/benchmarks/NAME
    # how they are asked; left out: as each is published
    protocol: Literal["choices", "greedy", "cot", "majority", "routed"] | None = None
    shots: int | None = None  # examples before each question; left out: as each is published
    samples: int = 8  # sampled chains of thought of each item, for majority and routed
    temperature: float = 0.7  # of the samples
    threshold: float | None = (
        None  # share above which routed takes the majority; left out: chosen on the validation split
    )
    limit: int | None = None  # items of each benchmark, drawn at random; left out: all
    max_tokens: int | None = None  # of a completion; left out: as each benchmark allows
    seed: int = 0  # of drawing items and sampling
    text: bool = False  # prompts are running text, without turns: for models that were not tuned to answer
    corpus: Path | None = None  # curated training documents: how many items they hold, and scores without those

    def __call__(self) -> None:
        from alhena.own_data import report_on, run_of
        from alhena.pipeline import ASSISTANT, make_report
        from alhena.stages import locked

        if self.data is None and self.name is None and self.tasks is None:
            with self.open_run() as run:
                make_report(run, self.folder)
            return
        model = model_folder(self.folder, self.name or ASSISTANT)
        if self.tasks is not None:
            self._benchmarks(model)
        elif self.data is not None:
            from alhena.evaluate.held_out import evaluate_held_out

            with locked(run_of(model)):
                evaluate_held_out(self.data, model, run_of(model) / "held_out" / model.name)
        else:
            with self.open_run():
                print(f"Report card: {report_on(self.folder, model) / 'report.html'} and report.png")

    def _benchmarks(self, model: Path) -> None:
        from alhena.evaluate.benchmark_run import Options, Run, run_tasks
        from alhena.evaluate.models.engine_model import EngineModel
        from alhena.evaluate.tasks.catalog import tasks_named
        from alhena.files import content_fingerprint
        from alhena.own_data import run_of
        from alhena.serve.engine import Engine
        from alhena.stages import locked

        assert self.tasks is not None
        # Before a minute of loading.
        tasks = tasks_named([name.strip() for name in self.tasks.split(",") if name.strip()])
        if self.data is None:
            raise ValueError("--tasks needs --data, a folder with a folder for each benchmark (docs/evaluation.md)")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: at least one item is asked")
        out = self.out or run_of(model) / "benchmarks" / model.name
        options = Options(
            self.protocol, self.shots, self.samples, self.temperature, self.threshold, self.limit, self.seed, self.max_tokens,
            self.corpus,
        )  # fmt: skip
        with locked(out):
            identity = f"{content_fingerprint(model)} {'text' if self.text else 'turns'}"
            run_tasks(Run(EngineModel(Engine.load(model), not self.text), out, identity), tasks, self.data, options)
        print(f"Results: {out}")


@dataclass(frozen=True)
class Compare:
    """Compare the results of two models on benchmarks: which differences are beyond chance.

    A and B are folders that `alhena evaluate --tasks` wrote, or one TASK.json each. Items that both answered are compared: McNemar's test
    where they are right or wrong, a paired bootstrap elsewhere, corrected for the number of tasks.
    """

    a: Folder  # results of the first model
    b: Folder  # results of the second model
    json: Path | None = None  # also write the comparison to this file

    def __call__(self) -> None:
        from dataclasses import asdict

        from alhena.evaluate.comparison import compare, print_comparison
        from alhena.files import write_json

        compared = compare(self.a, self.b)
        print_comparison(compared, (str(self.a), str(self.b)))
        if self.json:
            write_json(self.json, [asdict(c) | {"differs": c.differs} for c in compared])
