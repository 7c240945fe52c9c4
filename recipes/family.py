"""What the large members of the family share: one vocabulary, one context, one way from general data to the domains that matter.

A member is trained like the starter, stage by stage (``alhena tokenize RUN --recipe nano_1``, …), on raw documents of one's own under
RUN/raw, which have these sources; ``alhena plan nano_1 --on v5e:4x4`` says what its pre-training needs.
"""

from __future__ import annotations

from alhena.align.sft import Tune
from alhena.corpus.curate import Curate
from alhena.model import config
from alhena.model.embedding import embedding_rows
from alhena.model.sharding import Mesh
from alhena.recipe import Recipe
from alhena.tokens.encode import Budget
from alhena.tokens.loader import BatchShape
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Phase, Training
from alhena.train.optimizer import Optimizer

CONTEXT = 32_768
PATCHES = 4096  # of a row: four images of 256 tokens, or sixteen frames of 64
CHUNKS = 32  # of a row: 5½ minutes of sound
ROWS = 2**18  # of the embedding: divides over any number of chips that is a power of two
IMAGES = config.ImageTokenizer(structure=(8, 8), color=(8, 8), width=256, encoder_blocks=2, decoder_blocks=4)
BUDGET = Budget(image_tokens=256, frame_tokens=64, clip_frames=64, audio_seconds=300, image_out_codes=1024)

GENERAL = {
    "web": 40.0, "books": 12.0, "code": 12.0, "images": 12.0, "pages": 8.0, "drawing": 4.0, "speech": 8.0, "video": 4.0,
}  # fmt: skip
DOMAINS = GENERAL | {
    "web": 20.0,
    "books": 18.0,
    "code": 18.0,
    "images": 16.0,
}  # weighted up towards the end of training
CHATS = {"chats": 1.0}


def member(
    name: str,
    decoder: config.Decoder,
    vision: config.Vision,
    audio: config.Usm,
    tokens: float,
    batch_size: int,
    learning_rate: float,
    mesh: Mesh,
) -> Recipe:
    """A run of ``tokens`` tokens in rows of the whole context, ``rows`` to a step; the last tenth on what matters most."""
    shape = BatchShape(batch_size, CONTEXT, PATCHES, CHUNKS)
    steps = round(tokens / (batch_size * CONTEXT))
    phases = (Phase(steps - steps // 10, GENERAL), Phase(steps // 10, DOMAINS))
    return Recipe(
        name=name,
        corpus=None,
        curate=Curate(),
        text_vocabulary_size=ROWS - embedding_rows(Vocabulary(0, IMAGES.num_codes).size, IMAGES.factors),
        budget=BUDGET,
        decoder=decoder,
        vision=vision,
        audio=audio,
        image_tokenizer=IMAGES,
        image_tokenizer_training=TrainImageTokenizer(steps=200_000, side=64),
        pretrain=Training(
            phases, shape, Optimizer(learning_rate, warmup=2000), save_every=500, evaluate_every=2000, mesh=mesh
        ),
        tune=Tune(2000, shape, Optimizer(learning_rate / 20, warmup=100, schedule="cosine"), CHATS),
        compute_dtype="bfloat16",
    )
