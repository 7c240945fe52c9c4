"""Trains the starter's model from random weights on some sources of a finished run alone, and evaluates it on two splits.

    python benchmarks/train_on_sources.py [runs/starter] --sources drawing --steps 200

The validation split holds combinations of properties that occur in training, the test split those that do not. A task that is learned
here in a hundred steps, but not in the mixture, lacks documents, not model capacity. Writes benchmarks/results/alone_SOURCES.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from alhena.documents import read_documents
from alhena.evaluate.evaluation import evaluate, print_report
from alhena.files import write_json
from alhena.model import model
from alhena.pipeline import write_model_folder
from alhena.serve.engine import Engine
from alhena.tokens.encode import Encoder
from alhena.train.mixture import Phase, Training
from alhena.train.trainer import Folders, train
from recipes import starter


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    sources: tuple[str, ...] = ("drawing",)  # trained on, in proportion to their weights in the recipe's last phase
    tasks: tuple[str, ...] = ()  # sources to evaluate on; the default is those trained on
    steps: int = 200  # training steps


def main(bench: Bench) -> None:
    run, tokens = starter.run(), bench.folder / "tokens"
    c = run.model(Encoder.load(tokens).vocabulary)
    weights = {name: run.pretrain.phases[-1].weights[name] for name in bench.sources}
    t = Training((Phase(bench.steps, weights),), run.pretrain.shape, run.pretrain.optimizer)
    title, evaluated = ", ".join(bench.sources), bench.tasks or bench.sources
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = model.init(jax.random.key(0), c)
        params = train(params, c, t, Folders(tokens / "train", folder), title)
        write_model_folder(params, c, tokens, folder / "model", {"name": "alone"})
        engines, results = {"alone": Engine.load(folder / "model")}, {}
        for split in ("validation", "test"):
            documents = [d for d in read_documents(bench.folder / "curated" / split) if d.source in evaluated]
            evaluation = evaluate(engines, documents)
            print_report(evaluation.rows, evaluation.answers.skipped)
            results[split] = [asdict(row) for row in evaluation.rows]
    out = Path(__file__).parent / "results" / f"alone_{'_'.join(bench.sources)}.json"
    write_json(out, {"steps": bench.steps, "rows": results})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
