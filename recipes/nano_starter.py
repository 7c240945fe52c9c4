"""The Nano in the package: the starter's tasks with a larger decoder, more documents and longer training.

One GPU trains it in five minutes; two CPU cores would take about six hours. ``pretrain.data_shards`` packs batches in as many parts,
which several processes can prepare. Then `alhena compress … --name alhena-nano --encoders bfloat16`.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.corpus.starter import TRAIN, Starter
from alhena.model import config
from alhena.recipe import Recipe
from alhena.tokens.examples.padding import BatchShape
from alhena.train.components.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer
from recipes import starter

SHAPE = BatchShape(batch_size=64, tokens=384, patches=384, chunks=3)
# Documents of each source, relative to the starter; four times as many of the others.
GROWTH = {"tools": 8, "video": 2, "drawing": 2, "text": 3, "code": 3, "pages": 1, "names": 2}
STEPS = 2600
MORE = {"tools": 16.0, "text": 2.5, "code": 1.2, "names": 0.8}


def run() -> Recipe:
    """9.3 million parameters; 4-bit weights with 16-bit encoders take less than 12 MB."""
    base = starter.run()
    train = {name: count * GROWTH.get(name, 4) for name, count in TRAIN.items()}
    parts, tasks = starter.PARTS | MORE, starter.TASKS | MORE
    return replace(
        base,
        name="nano-starter",
        corpus=Starter(train=train),
        text_vocabulary_size=2048,
        decoder=config.Decoder(width=256, layers=8, heads=8, head_dim=32, hidden=768),
        vision=config.Vision(width=144, layers=4, heads=4, hidden=288),
        audio=config.Conformer(width=160, layers=3, heads=5, hidden=320),
        image_tokenizer_training=TrainImageTokenizer(steps=2000),
        pretrain=Training(
            (Phase(STEPS // 8, parts), Phase(STEPS - STEPS // 8, tasks)),
            SHAPE,
            Optimizer(learning_rate=4e-3, warmup=100, decay_fraction=0.5),
            save_every=STEPS,
            log_every=100,
            evaluate_every=STEPS // 2,
            data_shards=8,
        ),
        tune=replace(base.tune, shape=replace(starter.LONG, batch_size=24), weights=starter.LONG_TASKS | MORE),
    )


def smoke() -> Recipe:
    """The same stages in a minute, at the size of the starter's smoke recipe."""
    return replace(starter.smoke(), name="nano-smoke")
