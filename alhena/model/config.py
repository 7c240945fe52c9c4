"""Shapes of a model, as frozen dataclasses. Everything derivable is a property and never typed in twice.

Configurations are read from files too, so each checks its own fields: a ValueError names the field, what it is and what it can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alhena.schema import bounded, shown

CODES_STRIDE = 8  # pixels per image code, each way
SIZES = (1, 2**20)  # of widths, hidden sizes and counts of heads
DEPTHS = (1, 2**12)  # of layers
COMPUTE = ("float32", "bfloat16", "float16")


def _divides(owner: object, part: str, whole: str) -> None:
    if getattr(owner, whole) % getattr(owner, part):
        name = type(owner).__name__
        raise ValueError(f"{name}.{part} is {getattr(owner, part)}; it must divide {whole}, {getattr(owner, whole)}")


@dataclass(frozen=True)
class Decoder:
    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    kv_heads: int = 1
    window: int | None = None  # sliding window of the local layers, in tokens; None: every layer is global
    global_every: int = 1  # with a window: each n-th layer is global, the others local
    rope_base: float = 10_000.0
    local_rope_base: float | None = None  # of the layers with a window; None: the same
    rope_scaling_factor: float = (
        1.0  # positions of the global layers are divided by it (linear scaling, Chen et al. 2023)
    )
    qk_norm: bool = True
    post_norm: bool = True  # a norm behind each sub-layer as well as before it
    query_pre_attn_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    attention_softcap: float | None = None  # scores s become cap·tanh(s / cap)
    final_logit_softcap: float | None = None
    remat: bool = False  # training keeps only what enters each layer and computes the rest again, going back

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
        _divides(self, "kv_heads", "heads")
        if self.head_dim % 2:
            raise ValueError(f"Decoder.head_dim is {self.head_dim}; rotary positions need an even number")

    @property
    def attention_scale(self) -> float:
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5


@dataclass(frozen=True)
class Vision:
    """ViT on packed patches of any number of images; ``pool``² neighbouring patches become one soft token."""

    width: int
    layers: int
    heads: int
    hidden: int
    patch: int = 8
    pool: int = 2
    side: int = 128  # most rows and columns of patches
    plain: bool = False  # SigLIP's layers and positions (alhena/model/encoders/vision.py)
    remat: bool = False

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, hidden=SIZES, patch=(1, 256), pool=(1, 64))
        bounded(self, side=(1, 2**13))
        _divides(self, "heads", "width")
        if self.width % 4:
            raise ValueError(f"Vision.width is {self.width}; its positions need a multiple of 4")

    @property
    def patch_values(self) -> int:
        return self.patch * self.patch * 3

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels behind one soft token."""
        return self.patch * self.pool


@dataclass(frozen=True)
class Conformer:
    """Conformer on chunks of log-mel frames: two stride-2 convolutions, then ``stack`` neighbors become one soft token."""

    width: int
    layers: int
    heads: int
    hidden: int
    kernel: int = 5
    mels: int = 128
    chunk: int = 128  # frames of 10 ms; attention stays inside a chunk
    stack: int = 2
    remat: bool = False

    def __post_init__(self) -> None:
        bounded(self, width=SIZES, layers=DEPTHS, heads=SIZES, hidden=SIZES, kernel=(1, 2**12), mels=(1, 2**12))
        bounded(self, chunk=(4, 2**20), stack=(1, 2**10))
        _divides(self, "heads", "width")
        _divides(self, "frames_per_token", "chunk")

    @property
    def frames_per_token(self) -> int:
        return 4 * self.stack

    def tokens(self, frames: int) -> int:
        """Soft tokens of a chunk with that many valid frames."""
        return math.ceil(frames / self.frames_per_token)


@dataclass(frozen=True)
class Usm(Conformer):
    """The conformer of the Universal Speech Model (alhena/model/encoders/usm.py): attention to what is near, in sounds of any length."""

    chunk: int = 1024
    stack: int = 4
    channels: tuple[int, int] = (128, 32)  # of the two convolutions
    block: int = 12  # queries that share a window of keys
    left: int = 13  # vectors that a query sees, its own among them
    right: int = 0  # and of those after it
    cap: float = 50.0  # scores s become cap·tanh(s / cap)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, block=(1, 2**16), left=(1, 2**16), right=(0, 2**16), cap=(1e-6, 1e12))
        if not all(1 <= n <= 2**16 for n in self.channels):
            raise ValueError(f"Usm.channels is {self.channels}; each must be 1 to {2**16}")
        if self.mels % 4 or self.width % 2:
            raise ValueError(f"Usm: {self.mels} mels and a width of {self.width}; multiples of 4 and of 2 are needed")


def audio_class(settings: Any) -> type[Conformer]:
    """Which audio encoder stored settings describe, by the field that only one has."""
    return Usm if isinstance(settings, Mapping) and "channels" in settings else Conformer


@dataclass(frozen=True)
class ImageTokenizer:
    """Convolutional autoencoder with finite scalar quantization: the levels give the codebook, one code per 8×8 pixels.

    ``structure`` says what there is to see in a cell whatever its colors, ``color`` in which colors. With ``encoder_blocks`` 0 the encoder
    sees each cell alone; each residual block of it looks one cell further.
    """

    structure: tuple[int, ...]
    color: tuple[int, ...]
    width: int
    encoder_blocks: int = 0  # residual blocks of the encoder
    decoder_blocks: int = 2  # and of the decoder

    def __post_init__(self) -> None:
        bounded(self, width=(1, 2**16), encoder_blocks=(0, 2**8), decoder_blocks=(0, 2**8))
        if not (self.structure and self.color and len(self.levels) <= 16 and all(n >= 2 for n in self.levels)):
            raise ValueError(f"ImageTokenizer: levels {shown(self.levels)}; up to 16 numbers of 2 or more are needed")
        if self.num_codes > 2**20:
            raise ValueError(f"ImageTokenizer: {self.num_codes} codes; at most {2**20} can be read")

    @property
    def least_bytes(self) -> int:
        """What the weights take in a file at the very least: the largest of them, 16 bits each."""
        return 2 * 9 * self.width**2 * max(self.encoder_blocks, self.decoder_blocks)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.structure + self.color

    @property
    def factors(self) -> tuple[int, int]:
        return math.prod(self.structure), math.prod(self.color)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)


@dataclass(frozen=True)
class Model:
    """A natively multimodal decoder."""

    vocabulary: int
    image_token: int  # id of <img>, the placeholder of one vision vector
    audio_token: int  # id of <aud>, the placeholder of one audio vector
    decoder: Decoder
    vision: Vision | None  # None: a model that reads no images
    audio: Conformer | None
    code_factors: tuple[int, int] | None = None  # structures and colors of the image codes (alhena/model/embedding.py)
    compute_dtype: str = "float32"  # dtype of matmul operands; results are accumulated in float32

    def __post_init__(self) -> None:
        bounded(self, vocabulary=(1, 2**24))
        bounded(self, image_token=(-1, self.vocabulary - 1), audio_token=(-1, self.vocabulary - 1))
        if self.compute_dtype not in COMPUTE:
            raise ValueError(f"Model.compute is {shown(self.compute_dtype)}; one of {', '.join(COMPUTE)} is needed")
        if self.code_factors is not None:
            A, B = self.code_factors
            if A < 1 or B < 1 or self.vocabulary < A * B:
                raise ValueError(f"Model.code_factors is {shown((A, B))}; their product must be 1 to {self.vocabulary}")

    @property
    def least_bytes(self) -> int:
        """What the weights take in a file at the very least: the largest of them, 4 bits each (of encoders 16)."""
        d, codes = self.decoder, math.prod(self.code_factors or (0,))
        nibbles = d.layers * d.width * (3 * d.hidden + 2 * d.heads * d.head_dim) + (self.vocabulary - codes) * d.width
        encoders = [e.layers * e.width * (3 * e.width + 2 * e.hidden) for e in (self.vision, self.audio) if e]
        if self.vision:
            v = self.vision
            encoders += [(v.side**2 if v.plain else v.side) * v.width, v.pool**2 * v.width * d.width]
            encoders += [v.patch_values * v.width * (1 if v.plain else v.pool**2)]
        return nibbles // 2 + 2 * sum(encoders)
