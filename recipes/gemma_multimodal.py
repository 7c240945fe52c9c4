"""An imported text model that learns to read images, audio and video and to generate images: our encoders, ids and corpus around it.

    alhena import gemma-3-270m.gguf --out models/gemma --weights float32
    alhena demo --recipe gemma_multimodal runs/gemma

Its decoder is trained together with the encoders and the rows of the new ids; the rows of its own ids are not. It keeps its tokenizer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alhena.model.storage.base_model import read_base
from alhena.recipe import Recipe
from alhena.train.mixture import Phase
from alhena.train.optimizer import Optimizer
from recipes import starter

BASE = Path("models/gemma")


def _extending(recipe: Recipe, base: Path) -> Recipe:
    """A recipe around the decoder and the vocabulary of an imported text model."""
    c = read_base(base)
    return replace(recipe, base=base, decoder=c.decoder, text_vocabulary_size=c.vocabulary)


def run(base: Path = BASE) -> Recipe:
    """The encoders, the corpus and the mixture of the starter."""
    full = starter.run()
    # About two hours of two cores with 270 million parameters (estimated): a tenth of the starter's steps.
    phases = (Phase(40, starter.PARTS), Phase(120, starter.TASKS))
    # The decoder is trained already: the learning rate of random weights would destroy what it knows.
    optimizer = Optimizer(learning_rate=5e-4, warmup=20, decay_fraction=0.5)
    pretrain = replace(full.pretrain, phases=phases, optimizer=optimizer)
    tune = replace(full.tune, steps=40, optimizer=replace(full.tune.optimizer, learning_rate=5e-4))
    return _extending(replace(full, name="gemma_multimodal", pretrain=pretrain, tune=tune), base)


def gpu(base: Path = BASE) -> Recipe:
    """The same on one GPU: bfloat16, as many steps as the starter has."""
    cpu = run(base)
    pretrain = replace(cpu.pretrain, phases=starter.run().pretrain.phases)
    return replace(cpu, pretrain=pretrain, compute_dtype="bfloat16")


def smoke(base: Path = BASE) -> Recipe:
    """The same stages at the size of the starter's smoke recipe, for a tiny imported model."""
    return _extending(replace(starter.smoke(), name="gemma_smoke"), base)
