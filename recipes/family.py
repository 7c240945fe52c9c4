"""Settings shared by the large models of the family: vocabulary, context length, mixtures of sources, schedule.

Each is trained like the starter, stage by stage (``alhena tokenize RUN --recipe nano_1``, …), on your own documents under RUN/raw with
the sources named here. ``alhena plan nano_1 --on v5e:4x4`` reports what its pre-training needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from alhena.align.sft import Tune
from alhena.corpus.curate import Curate
from alhena.model import config
from alhena.model.sharding import Mesh
from alhena.model.transformer.embedding import embedding_rows
from alhena.recipe import Recipe
from alhena.tokens.encode import Budget
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.components.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer

CONTEXT = 32_768
# Per sequence: four images of 256 tokens, or sixteen video frames of 64.
PATCHES = 4096
# Per sequence: 5½ minutes of audio.
CHUNKS = 32
# Of the embedding; a power of two, so that it can be sharded over any number of devices that is one.
VOCABULARY_ROWS = 2**18
IMAGES = config.ImageTokenizer(structure=(8, 8), color=(8, 8), width=256, encoder_blocks=2, decoder_blocks=4)
BUDGET = Budget(image_tokens=256, frame_tokens=64, clip_frames=64, audio_seconds=300, image_out_codes=1024)

GENERAL = {
    "web": 40.0, "books": 12.0, "code": 12.0, "images": 12.0, "pages": 8.0, "drawing": 4.0, "speech": 8.0, "video": 4.0,
}  # fmt: skip
# The last tenth of training gives more weight to some sources.
FINAL = GENERAL | {"web": 20.0, "books": 18.0, "code": 18.0, "images": 16.0}
CHATS = {"chats": 1.0}


@dataclass(frozen=True)
class Architecture:
    """Configuration of the decoder and both encoders."""

    decoder: config.Decoder
    vision: config.Vision
    audio: config.Usm


@dataclass(frozen=True)
class Schedule:
    """Pre-training: total tokens, sequences of ``CONTEXT`` tokens per step, peak learning rate, device mesh."""

    tokens: float
    batch_size: int
    learning_rate: float
    mesh: Mesh


def family_recipe(name: str, model: Architecture, schedule: Schedule) -> Recipe:
    """The recipe of a family member. The last tenth of its steps uses the mixture ``FINAL``."""
    shape = BatchShape(schedule.batch_size, CONTEXT, PATCHES, CHUNKS)
    steps = round(schedule.tokens / (schedule.batch_size * CONTEXT))
    phases = (Phase(steps - steps // 10, GENERAL), Phase(steps // 10, FINAL))
    optimizer = Optimizer(schedule.learning_rate, warmup=2000)
    return Recipe(
        name=name,
        corpus=None,
        curate=Curate(),
        text_vocabulary_size=VOCABULARY_ROWS - embedding_rows(Vocabulary(0, IMAGES.num_codes).size, IMAGES.factors),
        budget=BUDGET,
        decoder=model.decoder,
        vision=model.vision,
        audio=model.audio,
        image_tokenizer=IMAGES,
        image_tokenizer_training=TrainImageTokenizer(steps=200_000, side=64),
        pretrain=Training(phases, shape, optimizer, save_every=500, evaluate_every=2000, mesh=schedule.mesh),
        tune=Tune(2000, shape, Optimizer(schedule.learning_rate / 20, warmup=100, schedule="cosine"), CHATS),
        compute_dtype="bfloat16",
    )
