"""Model configurations as frozen dataclasses. Derived values are properties.

Configurations are read from files too, so each checks its own fields: a ValueError names the field, its value and what is allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alhena.model.config_limits import DEPTHS, SIZES, check_divides
from alhena.model.encoders.audio_config import Audio as Audio
from alhena.model.encoders.audio_config import Conformer as Conformer
from alhena.model.encoders.audio_config import UnifiedAudio as UnifiedAudio
from alhena.model.encoders.audio_config import Usm as Usm
from alhena.model.encoders.audio_config import audio_class as audio_class
from alhena.model.encoders.vision_config import GemmaVision as GemmaVision
from alhena.model.encoders.vision_config import UnifiedVision as UnifiedVision
from alhena.model.encoders.vision_config import Vision as Vision
from alhena.model.encoders.vision_config import VisionEncoder as VisionEncoder
from alhena.model.encoders.vision_config import vision_class as vision_class
from alhena.schema import bounded, shown

# Pixels per image code along each side.
CODES_STRIDE = 8
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
# Which layers let the tokens of one image attend to each other in both directions.
IMAGE_ATTENTION = ("causal", "local", "all")


@dataclass(frozen=True)
class PerLayerInputs:
    """A second embedding table, with a small vector of each token for every layer (Gemma 3n and 4; alhena/model/variants/per_layer.py)."""

    # Numbers of a vector.
    width: int
    # Rows of the table; ids beyond it have the vector of id 0.
    vocabulary: int

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, vocabulary=(1, 2**24))


@dataclass(frozen=True)
class Experts:
    """A mixture of experts beside the MLP of every layer (alhena/model/variants/moe.py)."""

    number: int
    # Experts of one token.
    chosen: int
    hidden: int

    def __post_init__(self) -> None:
        bounded(self, number=(1, 2**16), chosen=(1, self.number), hidden=SIZES)


@dataclass(frozen=True)
class AltUp:
    """Gemma 3n's layers: parallel residual streams, a low-rank residual, sparse activations (alhena/model/variants/altup.py)."""

    streams: int
    # Rank of the learned augmented residual (LAuReL).
    laurel_rank: int
    # The first layers keep only the largest activations of their MLP's gate, a share of ``1 - sparsity`` of them.
    sparse_layers: int = 0
    sparsity: float = 0.95

    def __post_init__(self) -> None:
        bounded(self, streams=(2, 16), laurel_rank=SIZES, sparse_layers=(0, 2**12), sparsity=(0.01, 0.9999))


@dataclass(frozen=True)
class Decoder:
    """A decoder-only Transformer (alhena/model/transformer/decoder.py)."""

    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    kv_heads: int = 1
    # Sliding window of the local layers, in tokens; None: every layer is global.
    window: int | None = None
    # With a window: each n-th layer is global, the others local.
    global_every: int = 1
    rope_base: float = 10_000.0
    # RoPE base of the local layers; None: the same.
    local_rope_base: float | None = None
    # Positions of the global layers are divided by it (linear scaling, Chen et al. 2023).
    rope_scaling_factor: float = 1.0
    qk_norm: bool = True
    # A norm after each sub-layer as well as before it.
    post_norm: bool = True
    # Scores are divided by its square root; None: head_dim.
    query_pre_attn_scalar: float | None = None
    # Scores s become cap·tanh(s / cap).
    attention_softcap: float | None = None
    final_logit_softcap: float | None = None
    # Rematerialization: training saves only the input of each layer, the backward pass computes the rest again.
    remat: bool = False
    # Factor of the token embeddings; None: √width.
    embedding_scale: float | None = None
    # Head dimension and key/value heads of the global layers; None: those of the local layers.
    global_head_dim: int | None = None
    global_kv_heads: int | None = None
    # Share of the RoPE frequencies of the global layers that are not zero.
    global_rope_fraction: float = 1.0
    # Queries of the global layers at position n - 1 are multiplied by log(n) / log(this) where that is more than 1; None: never.
    log_scaling_start: int | None = None
    # RMSNorm of the values, without a scale.
    value_norm: bool = False
    # Global layers have no value projection: their values are the projected keys, before QK-norm and RoPE.
    global_key_as_value: bool = False
    # The last layers have no keys and values: they attend to those of the last layer before them of the same kind.
    kv_sharing_layers: int = 0
    # Hidden width of those layers; None: hidden.
    kv_sharing_hidden: int | None = None
    # The output of each layer is multiplied by a learned number.
    layer_scalar: bool = False
    image_attention: str = "causal"
    per_layer_inputs: PerLayerInputs | None = None
    experts: Experts | None = None
    altup: AltUp | None = None

    def __post_init__(self) -> None:
        positive = (1e-6, 1e12)
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, head_dim=(2, 2**16), hidden=SIZES, kv_heads=SIZES)
        bounded(self, window=(1, 2**31 - 1), global_every=(1, 2**31 - 1), rope_base=positive, local_rope_base=positive)
        bounded(
            self,
            rope_scaling_factor=positive,
            query_pre_attn_scalar=positive,
            attention_softcap=positive,
            final_logit_softcap=positive,
        )
        bounded(self, embedding_scale=positive, global_head_dim=(2, 2**16), global_kv_heads=SIZES)
        bounded(self, log_scaling_start=(2, 2**31 - 1))
        bounded(self, global_rope_fraction=(0.0, 1.0), kv_sharing_layers=(0, self.layers - 1), kv_sharing_hidden=SIZES)
        self._check_heads()
        if self.image_attention not in IMAGE_ATTENTION:
            raise ValueError(
                f"Decoder.image_attention is {shown(self.image_attention)}; one of {', '.join(IMAGE_ATTENTION)} is needed"
            )
        first = self.layers - self.kv_sharing_layers
        kinds = {self.is_global(i) for i in range(first)}
        missing = [i for i in range(first, self.layers) if self.is_global(i) not in kinds]
        if missing:
            raise ValueError(
                f"Decoder.kv_sharing_layers is {self.kv_sharing_layers}; layer {missing[0]} has no layer of its kind "
                f"among the first {first} to share keys and values with"
            )
        if self.altup and (self.experts or self.layer_scalar or not self.post_norm or not self.per_layer_inputs):
            raise ValueError("Decoder.altup: it needs post_norm and per_layer_inputs, without experts and layer_scalar")

    def _check_heads(self) -> None:
        for name in ("kv_heads", "global_kv_heads"):
            if getattr(self, name) is not None:
                check_divides(self, name, "heads")
        for name in ("head_dim", "global_head_dim"):
            if (getattr(self, name) or 0) % 2:
                raise ValueError(f"Decoder.{name} is {getattr(self, name)}; rotary positions need an even number")

    def is_global(self, layer: int) -> bool:
        """Whether a layer attends to the complete context."""
        return self.window is None or (layer + 1) % self.global_every == 0

    def attention_scale(self, head_dim: int) -> float:
        """Factor of the attention scores of heads of this size."""
        return (self.query_pre_attn_scalar or head_dim) ** -0.5


@dataclass(frozen=True)
class ImageTokenizer:
    """Convolutional autoencoder with finite scalar quantization: the levels give the codebook, one code per 8×8 pixels.

    ``structure`` holds the levels that encode the shapes in a cell, ``color`` those that encode its colors. The receptive field of the
    encoder is one cell, plus one cell on each side for every residual block.
    """

    structure: tuple[int, ...]
    color: tuple[int, ...]
    width: int
    # Numbers of residual blocks.
    encoder_blocks: int = 0
    decoder_blocks: int = 2

    def __post_init__(self) -> None:
        bounded(self, width=(1, 2**16), encoder_blocks=(0, 2**8), decoder_blocks=(0, 2**8))
        if not (self.structure and self.color and len(self.levels) <= 16 and all(n >= 2 for n in self.levels)):
            raise ValueError(f"ImageTokenizer: levels {shown(self.levels)}; up to 16 numbers of 2 or more are needed")
        if self.num_codes > 2**20:
            raise ValueError(f"ImageTokenizer: {self.num_codes} codes; at most {2**20} can be read")

    @property
    def min_bytes(self) -> int:
        """Lower bound of the size of the weights in a file: the largest of them, 16 bits each."""
        return 2 * 9 * self.width**2 * max(self.encoder_blocks, self.decoder_blocks)

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each dimension of the latent vector."""
        return self.structure + self.color

    @property
    def factors(self) -> tuple[int, int]:
        """Numbers of structures and of colors."""
        return math.prod(self.structure), math.prod(self.color)

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return math.prod(self.levels)


@dataclass(frozen=True)
class Model:
    """A natively multimodal decoder."""

    vocabulary: int
    # Id of <img>, the placeholder of one vision vector.
    image_token: int
    # Id of <aud>, the placeholder of one audio vector.
    audio_token: int
    decoder: Decoder
    # None: no vision encoder.
    vision: VisionEncoder | None
    # None: no audio encoder.
    audio: Audio | None
    # Numbers of structures and colors of the image codes (alhena/model/transformer/embedding.py).
    code_factors: tuple[int, int] | None = None
    # Dtype of matmul operands; results are accumulated in float32.
    compute_dtype: str = "float32"
    # Id of the placeholder of one vision vector of a video frame, where it has its own.
    video_token: int = -1
    # Encoder outputs replace the embeddings of their placeholders, instead of being added to them.
    replace_placeholders: bool = False
    # The last ids have embeddings of their own, which are not scaled (Gemma 3n's marks of media).
    special_rows: int = 0
    # The first rows of the embedding are those of the model that this one extends: they are never trained.
    frozen_rows: int = 0

    def __post_init__(self) -> None:
        bounded(self, vocabulary=(1, 2**24))
        ids = (-1, self.vocabulary - 1)
        bounded(self, image_token=ids, audio_token=ids, video_token=ids, special_rows=(0, self.vocabulary))
        if self.compute_dtype not in COMPUTE_DTYPES:
            allowed = ", ".join(COMPUTE_DTYPES)
            raise ValueError(f"Model.compute_dtype is {shown(self.compute_dtype)}; one of {allowed} is needed")
        if self.code_factors is not None:
            A, B = self.code_factors
            if A < 1 or B < 1 or self.vocabulary < A * B:
                raise ValueError(f"Model.code_factors is {shown((A, B))}; their product must be 1 to {self.vocabulary}")
        # Some rows are trained.
        codes = math.prod(self.code_factors or (0,))
        bounded(self, frozen_rows=(0, max(0, self.vocabulary - codes - (not codes))))

    @property
    def min_bytes(self) -> int:
        """Lower bound of the size of the weights in a file: the largest of them, 4 bits each."""
        d, codes = self.decoder, math.prod(self.code_factors or (0,))
        hidden, head_dim = (
            min(d.hidden, d.kv_sharing_hidden or d.hidden),
            min(d.head_dim, d.global_head_dim or d.head_dim),
        )
        hidden += d.experts.number * d.experts.hidden if d.experts else 0
        nibbles = d.layers * d.width * (3 * hidden + 2 * d.heads * head_dim) + (self.vocabulary - codes) * d.width
        if p := d.per_layer_inputs:
            nibbles += d.layers * p.width * (p.vocabulary + 3 * d.width)
        nibbles += self.audio.min_values(d.width) if self.audio else 0
        nibbles += self.vision.min_values(d.width) if self.vision else 0
        return nibbles // 2
