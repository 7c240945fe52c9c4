"""Commands that measure models and show what was measured: evaluate, compare, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alhena.cli.arguments import Folder, OptionalFolder, StageCommand, model_folder


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
        from alhena.evaluate.benchmarks.benchmark_run import Options, Run, run_tasks
        from alhena.evaluate.models.engine_model import EngineModel
        from alhena.evaluate.models.facts import model_facts
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
            run = Run(EngineModel(Engine.load(model), not self.text), out, identity, model_facts(model))
            run_tasks(run, tasks, self.data, options)
        print(f"Results: {out}; report card: {out / 'report.html'}")


@dataclass(frozen=True)
class Compare:
    """Compare the results of two models on benchmarks: which differences are beyond chance.

    A and B are folders that `alhena evaluate` wrote, or a results.json or TASK.json each, of one model. Items that both answered are
    compared: McNemar's test where they are right or wrong, a paired bootstrap elsewhere, corrected for the number of tasks.
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


@dataclass(frozen=True)
class Context:
    """Measure how a model uses its context: what it finds at a depth of long texts, recordings and videos, and loss by position.

    Texts have ten pairs at a depth of modules of Python's standard library, then a question, as in the Gemini 1.0 report. In a
    recording of noise a number is spoken once. Of a video one frame shows another digit than all others.

    A length that the model does not read is refused; media longer than one clip of the model are asked in several. Writes retrieval.json,
    retrieval_audio.json, retrieval_video.json, and report.html with the heat maps. With --texts also loss.json and loss.png: the loss by
    position, and of the same tokens after more and less of what is before them.

        alhena context runs/starter --media audio video
    """

    folder: OptionalFolder = None  # run folder or model folder; left out: the model of the package
    name: str | None = None  # name of the model in a run folder; left out: the quantized one, if there is one
    media: tuple[Literal["text", "audio", "video"], ...] = ("text",)
    # of one medium: tokens, seconds or frames; left out: 1,024 to 32,768 tokens, 2 to 60 seconds, 2 to 48 frames
    lengths: tuple[int, ...] = ()
    # of what is asked: 0 at the beginning, 1 right before the question
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    items: int = 50  # questions of each length and depth
    seed: int = 0  # of what is asked, and of filler
    filler: Path | None = None  # a long text in place of the standard library's
    texts: tuple[Path, ...] = ()  # long texts, such as books, whose loss is measured
    windows: int = 8  # parts of the texts, each as long as the longest of --lengths
    out: Path | None = None  # folder for the results; left out: RUN/context/NAME

    def __call__(self) -> None:
        from alhena.cli.arguments import served_folder
        from alhena.evaluate.context.grid import LENGTHS, Grid
        from alhena.evaluate.context.measure import Measured, Texts, measure
        from alhena.evaluate.models.engine_model import EngineModel
        from alhena.evaluate.models.facts import model_facts
        from alhena.own_data import run_of
        from alhena.serve.engine import Engine
        from alhena.stages import locked

        if self.lengths and len(self.media) > 1:
            raise ValueError(
                f"--lengths are those of one medium, and --media names {len(self.media)}: measure one by one"
            )
        grids = [
            Grid(self.lengths or LENGTHS[medium], self.depths, self.items, self.seed, medium) for medium in self.media
        ]
        folder = served_folder(self.folder, self.name)
        out = self.out or run_of(folder) / "context" / folder.name
        with locked(out):
            measured = Measured(EngineModel(Engine.load(folder)), out, model_facts(folder))
            measure(measured, grids, Texts(self.texts, self.windows, self.filler))
        print(f"Results: {out}; heat maps: {out / 'report.html'}")


@dataclass(frozen=True)
class Report:
    """Write one report card of any number of results: models side by side, by section, with intervals, chance, and the figures of
    the Gemini 1.0 report for public benchmarks.

    Each of RESULTS is a run folder (all of its evaluations), a folder that `alhena evaluate` wrote, or one file: results.json, a TASK.json,
    or a map of accuracy by length and depth. NAME=PATH gives its models another name. The first model is the one that others are
    compared with.

        alhena report runs/starter --out card
        alhena report mine=runs/mine/report gemma=runs/gemma/benchmarks/270m --out card

    Writes report.html (with examples and the history of the runs), report.png, report.md and report.json.
    """

    results: Annotated[tuple[str, ...], tyro.conf.Positional]  # run folders, folders or files of results
    out: Path  # folder of the card

    def __call__(self) -> None:
        from alhena.evaluate.card.write import write_card

        card = write_card(self.results, self.out)
        print(
            f"{len(card.rows)} rows, {len(card.models)} models: {self.out / 'report.html'}, report.png, report.md, report.json"
        )
