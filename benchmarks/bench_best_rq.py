"""Whether self-supervised pre-training of the audio encoder (BEST-RQ) helps speech recognition: the starter's model with and without.

    python benchmarks/bench_best_rq.py [runs/starter]        needs the run's encoded corpus (alhena tokenize)

For each seed the encoder is pre-trained on all audio of the corpus. Then the complete model is trained to transcribe, on a share of the
transcripts, for the same number of steps from both initial states. Prints the validation loss (nats per token of speech) and the cost of
pre-training, and writes them to benchmarks/results/best_rq.json.
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
from alhena.tokens.examples.loader import Batches
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples, write_examples
from alhena.train.components.best_rq import BestRq, pretrain_audio_encoder
from alhena.train.mixture import open_examples
from alhena.train.monitoring.validation import validate
from alhena.train.optimizer import Optimizer, optimizer
from alhena.train.step import initial_state, train_step
from recipes import starter

SHAPE = BatchShape(batch_size=8, tokens=256, patches=0, chunks=4)


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    shares: tuple[float, ...] = (0.1, 1.0)  # shares of the transcripts to train on
    steps: int = 250  # training steps with transcripts
    pretraining_steps: int = 1500
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path(__file__).parent / "results" / "best_rq.json"


def copy(tree: Any) -> Any:
    """A copy of every array, since training donates the buffers it starts from."""
    return jax.tree.map(lambda x: x.copy(), tree)


def transcription_loss(params: model.Params, c: config.Model, bench: Bench, train: Examples, seed: int) -> float:
    """Nats per token of the validation split after training from ``params``."""
    transform = optimizer(Optimizer(learning_rate=5e-3, warmup=30, decay_fraction=0.5), bench.steps, model.weights(c))
    state, batches = initial_state(params, c, transform), Batches({"speech": train}, {"speech": 1.0}, SHAPE, seed)
    for _ in range(bench.steps):
        state, _ = train_step(state, next(batches), c, transform)
    validation = Examples(bench.folder / "tokens" / "validation" / "speech.arrow")
    return validate(state.params, c, {"speech": validation}, SHAPE)["speech"]


def pretrain(params: model.Params, c: config.Model, bench: Bench, seed: int) -> tuple[model.Params, dict[str, Any]]:
    """``params`` with a pre-trained audio encoder, and what the pre-training cost."""
    assert params.audio is not None and c.audio is not None
    began, sources = time.monotonic(), open_examples(bench.folder / "tokens" / "train")
    t = BestRq(steps=bench.pretraining_steps, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        encoder, facts = pretrain_audio_encoder(copy(params.audio), c.audio, t, sources, Path(folder))
    return replace(params, audio=encoder), {"seconds": round(time.monotonic() - began), **facts}


def share_of(examples: Examples, share: float, c: config.Model, path: Path) -> Examples:
    """The first examples of a source, as a file of their own."""
    assert c.audio is not None
    inner = {"patches": (c.vision.patch_values if c.vision else 1,), "frames": (c.audio.chunk, c.audio.frame_values)}
    write_examples(path, (examples[i] for i in range(int(len(examples) * share))), inner)
    return Examples(path)


def main(bench: Bench) -> None:
    tokens = bench.folder / "tokens"
    c = starter.run().model(Encoder.load(tokens).vocabulary)
    speech = Examples(tokens / "train" / "speech.arrow")
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    rows: list[dict[str, Any]] = []
    costs = []
    for seed in bench.seeds:
        params = model.init(jax.random.key(seed), c)
        pretrained, cost = pretrain(params, c, bench, seed)
        costs.append(cost)
        for share in bench.shares:
            with tempfile.TemporaryDirectory() as folder:
                train = share_of(speech, share, c, Path(folder) / "speech.arrow")
                losses = {
                    name: transcription_loss(copy(initial), c, bench, train, seed)
                    for name, initial in (("without", params), ("pretrained", pretrained))
                }
            rows.append({"transcripts": len(train), "seed": seed, **losses})
            print(rows[-1], cost, flush=True)
            write_json(bench.out, {"steps": bench.steps, "pretraining": costs, "rows": rows, "device": device})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
