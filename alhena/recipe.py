"""A run: every setting of one model's journey, as one frozen dataclass. A recipe is a Python function that returns it."""

from __future__ import annotations

from dataclasses import dataclass

from alhena.align.sft import Tune
from alhena.corpus.curate import Curate
from alhena.corpus.starter import Starter
from alhena.model import config
from alhena.tokens.encode import Budget
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.best_rq import BestRq
from alhena.train.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Training


@dataclass(frozen=True)
class Recipe:
    """From corpus to report card; ``decoder``, ``vision`` and ``audio`` give the model its shape."""

    name: str
    corpus: Starter | None  # None: raw documents of one's own, under RUN/raw
    curate: Curate
    text_vocabulary_size: int  # SentencePiece pieces asked for; a small corpus may yield fewer
    budget: Budget
    decoder: config.Decoder
    vision: config.Vision
    audio: config.Conformer
    image_tokenizer: config.ImageTokenizer
    image_tokenizer_training: TrainImageTokenizer
    pretrain: Training
    tune: Tune
    audio_pretraining: BestRq | None = None  # the audio encoder learns from sound alone first
    condition_dropout: float = 0.08  # share of drawings asked for by nothing, for classifier-free guidance
    quantization_group: int = 32  # weights that share a scale when quantized to 4 bits
    compute_dtype: str = "float32"

    def model(self, vocabulary: Vocabulary) -> config.Model:
        """The model's configuration, known once the text pieces are."""
        image, audio = vocabulary.control("<img>"), vocabulary.control("<aud>")
        factors = self.image_tokenizer.factors
        return config.Model(
            vocabulary.size, image, audio, self.decoder, self.vision, self.audio, factors, self.compute_dtype
        )
