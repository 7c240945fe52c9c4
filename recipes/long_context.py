"""A text model whose context is extended from 256 to 32,768 tokens in three stages; two idle CPU cores train it in an hour and three quarters.

`alhena demo runs/long_context --recipe long_context`, then `alhena context runs/long_context` for the heat map of retrieval.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.align.sft import Tune
from alhena.compress.steps import Quantization
from alhena.corpus.starter import Starter
from alhena.corpus.starter.text.long_retrieval import LENGTHS
from alhena.recipe import Extension, Recipe
from alhena.tokens.examples.padding import BatchShape
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer
from recipes import starter

TRAIN = {
    "retrieval": 20_000, "text": 3000, "code": 3000, "modules": 350, "renamed": 200, "retrieval_1k": 1500, "retrieval_2k": 2000,
    "retrieval_8k": 800, "retrieval_32k": 300,
}  # fmt: skip
# Items of each row of the report card: one of 32,768 tokens takes ten seconds or more. `alhena context` asks about each document ten times.
TEST = 20
SHORT = {"retrieval": 4.0, "text": 0.5, "code": 0.5, "modules": 1.0, "renamed": 2.0}


def shape(batch_size: int, tokens: int) -> BatchShape:
    """Text alone: no patches, no audio."""
    return BatchShape(batch_size, tokens, 0, 0)


def mixture(source: str) -> dict[str, float]:
    """One length of documents, some shorter ones, and running text."""
    shorter = {name: 0.5 for name, tokens in LENGTHS.items() if tokens < LENGTHS[source]}
    return shorter | {"retrieval": 1.0, "modules": 2.0, "renamed": 3.0, source: 4.0}


def extension(source: str, batch_size: int, steps: int) -> Extension:
    """Continued training on the mixture of one length."""
    optimizer, phase = Optimizer(learning_rate=2e-3, warmup=10, decay_fraction=0.5), Phase(steps, mixture(source))
    t = Training((phase,), shape(batch_size, LENGTHS[source]), optimizer, save_every=20, log_every=5)
    return Extension(replace(t, evaluate_every=steps))


def run() -> Recipe:
    """2.7 million parameters, with the encoders that texts do not use; every second layer is global, the others have a window of 128 tokens."""
    base = starter.run()
    pretrain = Training((Phase(600, SHORT),), shape(32, 256), Optimizer(learning_rate=5e-3, decay_fraction=0.3))
    return replace(
        base,
        name="long-context",
        corpus=Starter(train=TRAIN, test=TEST),
        text_vocabulary_size=2048,
        # Only the local layers have RoPE (Yang et al. 2025, arXiv:2501.18795): no angle changes when sequences become longer.
        # The queries of the others grow with the logarithm of the position beyond the second extension, which keeps attention sharp.
        decoder=replace(
            base.decoder,
            window=128,
            global_every=2,
            global_rope_fraction=0.0,
            log_scaling_start=LENGTHS["retrieval_8k"],
        ),
        pretrain=replace(pretrain, evaluate_every=300),
        extensions=(
            extension("retrieval_2k", 8, 200),
            extension("retrieval_8k", 2, 100),
            extension("retrieval_32k", 1, 120),
        ),
        tune=Tune(
            8, shape(1, 32768), Optimizer(learning_rate=1e-4, warmup=2, schedule="cosine"), mixture("retrieval_32k")
        ),
        quantization=Quantization("round"),
    )


def smoke() -> Recipe:
    """The same stages at a tiny size, for tests: the context grows from 64 to 256 tokens."""
    full, small = run(), starter.smoke()
    few = dict.fromkeys(("retrieval", "text", "code"), 24)
    pretrain = replace(small.pretrain, phases=(Phase(4, dict.fromkeys(few, 1.0)),), shape=shape(2, 128))
    longer = replace(pretrain, phases=(Phase(2, dict.fromkeys(few, 1.0)),), shape=shape(1, 256))
    return replace(
        full,
        name="long-context-smoke",
        corpus=Starter(train=few, test=2, validation=2),
        text_vocabulary_size=800,
        decoder=replace(small.decoder, window=32, global_every=2, local_rope_base=10_000.0),
        image_tokenizer=small.image_tokenizer,
        image_tokenizer_training=small.image_tokenizer_training,
        pretrain=pretrain,
        extensions=(Extension(longer, 50_000.0),),
        tune=Tune(2, shape(1, 256), weights={"retrieval": 1.0}),
    )
