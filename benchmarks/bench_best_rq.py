"""Does listening first (BEST-RQ) help to transcribe later? The starter's model on its speech, with and without, few transcripts and all.

    python benchmarks/bench_best_rq.py [runs/starter]        needs the run's encoded corpus (alhena tokenize)

The encoder listens to all sound of the corpus once for each seed; then the whole model learns to transcribe from a share of the
transcripts, for the same number of steps from both beginnings. Prints and writes the validation split's nats per token of speech
(benchmarks/results/best_rq.json), and what listening cost.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from alhena.files import write_json
from alhena.model import config, model
from alhena.tokens.encode import Encoder
from alhena.tokens.loader import Batches, BatchShape
from alhena.tokens.store import Examples, write_examples
from alhena.train.best_rq import BestRq, pretrain_audio_encoder
from alhena.train.mixture import open_examples
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state, train_step
from alhena.train.validation import validate
from recipes import starter

SHAPE = BatchShape(batch_size=8, tokens=256, patches=0, chunks=4)


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")
    shares: tuple[float, ...] = (0.1, 1.0)  # of the transcripts
    steps: int = 250  # of learning to transcribe
    listening: int = 1500  # steps
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path(__file__).parent / "results" / "best_rq.json"


def copy(tree: Any) -> Any:
    """Training consumes what it begins with."""
    return jax.tree.map(lambda x: x.copy(), tree)


def transcribe(params: model.Params, c: config.Model, bench: Bench, train: Examples, seed: int) -> float:
    """Nats per token of the validation split after training from ``params``."""
    transform = optimizer(Optimizer(learning_rate=5e-3, warmup=30, decay_fraction=0.5), bench.steps, model.weights(c))
    state, batches = initial_state(params, c, transform), Batches({"speech": train}, {"speech": 1.0}, SHAPE, seed)
    for _ in range(bench.steps):
        state, _ = train_step(state, next(batches), c, transform)
    held = Examples(bench.folder / "tokens" / "validation" / "speech.arrow")
    return validate(state.params, c, {"speech": held}, SHAPE)["speech"]


def main(bench: Bench) -> None:
    tokens = bench.folder / "tokens"
    c = starter.run().model(Encoder.load(tokens).vocabulary)
    assert c.audio is not None
    whole = Examples(tokens / "train" / "speech.arrow")
    inner = {"patches": (c.vision.patch_values if c.vision else 1,), "frames": (c.audio.chunk, c.audio.mels)}
    rows, costs = [], []
    for seed in bench.seeds:
        params = model.init(jax.random.key(seed), c)
        assert params.audio is not None
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            t = BestRq(steps=bench.listening, seed=seed)
            ears, facts = pretrain_audio_encoder(
                copy(params.audio), c.audio, t, open_examples(tokens / "train"), Path(folder) / "listen"
            )
            costs.append({"seconds": round(time.monotonic() - began), **facts})
            for share in bench.shares:
                some = Path(folder) / f"{share}.arrow"
                write_examples(some, (whole[i] for i in range(int(len(whole) * share))), inner)
                found = {}
                for name, begin in (("without", params), ("listened", replace(params, audio=ears))):
                    found[name] = transcribe(copy(begin), c, bench, Examples(some), seed)
                rows.append({"transcripts": int(len(whole) * share), "seed": seed, **found})
                print(rows[-1], costs[-1], flush=True)
        device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
        write_json(bench.out, {"steps": bench.steps, "listening": costs, "rows": rows, "device": device})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
