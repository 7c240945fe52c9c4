"""What a skill costs alone: the starter's model trained from nothing on some sources of a finished run, then asked both splits.

    python benchmarks/some_sources.py [runs/starter] --sources drawing --steps 200

The validation split holds combinations that training showed, the test split those it never did. A task that is learned here in a
hundred steps and not at all in the mixture lacks documents, not capacity. Writes benchmarks/results/alone_SOURCES.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from alhena.content import read_documents
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
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")
    sources: tuple[str, ...] = ("drawing",)  # trained on, in proportion to their weights in the recipe's last phase
    tasks: tuple[str, ...] = ()  # asked; by default those of the sources
    steps: int = 200


def main(bench: Bench) -> None:
    run, tokens = starter.run(), bench.folder / "tokens"
    c = run.model(Encoder.load(tokens).vocabulary)
    weights = {name: run.pretrain.phases[-1].weights[name] for name in bench.sources}
    t = Training((Phase(bench.steps, weights),), run.pretrain.shape, run.pretrain.optimizer)
    with tempfile.TemporaryDirectory() as made:
        params = train(
            model.init(jax.random.key(0), c), c, t, Folders(tokens / "train", Path(made)), ", ".join(bench.sources)
        )
        write_model_folder(params, c, tokens, Path(made) / "model", {"name": "alone"})
        engines = {"alone": Engine.load(Path(made) / "model")}
        asked = bench.tasks or bench.sources
        results = {}
        for split in ("validation", "test"):
            documents = [d for d in read_documents(bench.folder / "curated" / split) if d.source in asked]
            evaluation = evaluate(engines, documents)
            print_report(evaluation.rows, evaluation.answers.skipped)
            results[split] = [asdict(row) for row in evaluation.rows]
    name = "_".join(bench.sources)
    write_json(Path(__file__).parent / "results" / f"alone_{name}.json", {"steps": bench.steps, "rows": results})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
