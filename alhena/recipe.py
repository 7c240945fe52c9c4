"""The settings of a run, from raw documents to report card, as one frozen dataclass. A recipe is a Python function that returns it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from alhena.align.sft import Tune
from alhena.compress.distill import Distill
from alhena.compress.steps import Quantization
from alhena.corpus.curate import Curate
from alhena.corpus.starter import Starter
from alhena.model import config
from alhena.tokens.encode import Budget
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.components.best_rq import BestRq
from alhena.train.components.image_tokenizer import TrainImageTokenizer
from alhena.train.mixture import Training


@dataclass(frozen=True)
class Extension:
    """Context extension: continued training on longer sequences, and another RoPE base of the global layers, if they have RoPE."""

    training: Training
    # Larger for longer sequences (Xiong et al. 2023, arXiv:2309.16039); the local layers, whose window stays, keep theirs.
    # None: as before.
    rope_base: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings by stage; ``decoder``, ``vision`` and ``audio`` are the model's configuration."""

    name: str
    # None: the user's own documents, under RUN/raw.
    corpus: Starter | None
    curate: Curate
    # Tokens requested of SentencePiece; a small corpus may yield fewer. With a base: the ids of its vocabulary.
    text_vocabulary_size: int
    budget: Budget
    decoder: config.Decoder
    vision: config.Vision
    audio: config.Conformer
    image_tokenizer: config.ImageTokenizer
    image_tokenizer_training: TrainImageTokenizer
    pretrain: Training
    tune: Tune
    # Self-supervised pre-training of the audio encoder; None: without it.
    audio_pretraining: BestRq | None = None
    # Share of the image-generation documents whose prompt is dropped, for classifier-free guidance.
    condition_dropout: float = 0.08
    quantization: Quantization = Quantization()
    compute_dtype: str = "float32"
    # The folder of an imported text model that is extended; its decoder is ``decoder``. None: all is trained from random weights.
    base: Path | None = None
    # A teacher whose distribution pre-training learns; the model takes its tokenizers.
    distill: Distill | None = None
    # After pre-training, one after the other, each on longer sequences than the one before.
    extensions: tuple[Extension, ...] = ()

    def __post_init__(self) -> None:
        lengths = [t.shape.tokens for t in (self.pretrain, *(extension.training for extension in self.extensions))]
        if lengths != sorted(set(lengths)):
            raise ValueError(
                f"{self.name}: sequences of {lengths} tokens; each extension needs longer ones than the one before"
            )
        if any(extension.rope_base is not None for extension in self.extensions):
            self._check_rope_base()

    def _check_rope_base(self) -> None:
        """Raises ValueError unless another RoPE base changes the global layers, and them alone."""
        if self.decoder.window is not None and self.decoder.local_rope_base is None:
            raise ValueError(
                f"{self.name}: Decoder.local_rope_base is None, so extensions would change the local layers; set it to "
                f"{self.decoder.rope_base:g}"
            )
        if self.decoder.global_rope_fraction == 0:
            raise ValueError(
                f"{self.name}: Extension.rope_base has no effect, since Decoder.global_rope_fraction is 0; leave it out"
            )

    @property
    def window(self) -> int:
        """Tokens at which running text is split; what has shorter sequences reads windows of it."""
        return max(t.shape.tokens for t in (self.pretrain, *(extension.training for extension in self.extensions)))

    @property
    def max_tokens(self) -> int:
        """Tokens that a conversation may have: those of the longest sequence that the model is trained or tuned on."""
        return max(self.window, self.tune.shape.tokens)

    def model(self, vocabulary: Vocabulary) -> config.Model:
        """The model's configuration; its vocabulary size is known once the text tokenizer is trained."""
        image, audio = vocabulary.control("<img>"), vocabulary.control("<aud>")
        factors = self.image_tokenizer.factors
        c = config.Model(
            vocabulary.size, image, audio, self.decoder, self.vision, self.audio, factors, self.compute_dtype
        )
        return replace(c, frozen_rows=vocabulary.num_text) if self.base else c
