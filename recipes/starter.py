"""The starter: a natively multimodal model that two CPU cores train in about an hour."""

from __future__ import annotations

from dataclasses import replace

from alhena.align.sft import Tune
from alhena.compress.steps import Quantization
from alhena.corpus.curate import Curate
from alhena.corpus.starter import Starter
from alhena.model import config
from alhena.recipe import Recipe
from alhena.tokens.encode import Budget
from alhena.tokens.examples.padding import BatchShape
from alhena.train.components.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer

CONTEXT = 256
SHAPE = BatchShape(batch_size=16, tokens=CONTEXT, patches=256, chunks=2)
# Of tuning: a recording of half a minute, 24 frames of a video, or a text of 1,024 tokens.
LONG = BatchShape(batch_size=4, tokens=4 * CONTEXT, patches=1024, chunks=24)

# Weights of the sources in a mixture. All modalities from the first step: components first (one figure, one word), then tasks that
# combine them. A task that was not learned had too few short documents of its components (docs/results/experiments.md).
PARTS = {
    "figures": 40.0, "digits": 12.0, "ocr": 10.0, "speech": 11.0, "drawing": 9.0, "retrieval": 9.0, "relations": 5.0,
    "scenes": 8.0, "charts": 10.0, "video": 6.0, "spoken": 4.0, "translation": 4.0, "names": 2.5, "text": 1.8, "code": 1.2,
    "pages": 0.3, "tools": 6.0, "reasoning": 3.0,
}  # fmt: skip
TASKS = {
    "figures": 12.0, "digits": 10.0, "ocr": 12.0, "speech": 9.0, "drawing": 12.0, "retrieval": 5.0, "relations": 11.0,
    "scenes": 15.0, "charts": 19.0, "video": 10.0, "spoken": 7.0, "translation": 4.5, "names": 2.0, "text": 1.5, "code": 1.0,
    "pages": 0.4, "tools": 10.0, "reasoning": 3.5, "needles": 4.0,
}  # fmt: skip
# Of tuning: long conversations too, and running text, so that it is not forgotten.
LONG_TASKS = TASKS | {"needles": 25.0, "retrieval_1k": 15.0}


def run() -> Recipe:
    """2.6 million parameters."""
    return Recipe(
        name="starter",
        corpus=Starter(),
        curate=Curate(),
        text_vocabulary_size=1536,
        budget=Budget(image_tokens=64, frame_tokens=4, clip_frames=6, audio_seconds=30, image_out_codes=64),
        decoder=config.Decoder(width=128, layers=4, heads=4, head_dim=32, hidden=384),
        vision=config.Vision(width=128, layers=2, heads=4, hidden=256),
        audio=config.Conformer(width=128, layers=3, heads=4, hidden=256),
        image_tokenizer=config.ImageTokenizer(structure=(8, 8), color=(3, 3, 3), width=128),
        image_tokenizer_training=TrainImageTokenizer(steps=1200),
        pretrain=Training(
            (Phase(500, PARTS), Phase(2800, TASKS)), SHAPE, Optimizer(learning_rate=5e-3, decay_fraction=0.5)
        ),
        tune=Tune(160, LONG, Optimizer(learning_rate=7e-4, warmup=20, schedule="cosine"), LONG_TASKS),
        quantization=Quantization("qat"),
    )


def smoke() -> Recipe:
    """The same stages in a minute or two, for tests: all of the code runs, at a tiny size, and nothing is learned well."""
    full, few = run(), dict.fromkeys((*TASKS, "retrieval_1k"), 24)
    return replace(
        full,
        name="smoke",
        corpus=Starter(train=few, test=2, validation=2),
        text_vocabulary_size=800,
        decoder=replace(full.decoder, width=64, layers=2, heads=2, head_dim=32, hidden=128),
        vision=replace(full.vision, width=32, layers=1, heads=2, hidden=64),
        audio=replace(full.audio, width=32, layers=1, heads=2, hidden=64),
        image_tokenizer=replace(full.image_tokenizer, width=32),
        image_tokenizer_training=replace(full.image_tokenizer_training, steps=40, save_every=20),
        pretrain=replace(
            full.pretrain, phases=(Phase(6, PARTS), Phase(4, TASKS)), save_every=4, log_every=2, evaluate_every=10
        ),
        tune=replace(full.tune, steps=6, shape=replace(LONG, batch_size=2), save_every=3),
        quantization=replace(full.quantization, steps=2, batches=1),
    )
