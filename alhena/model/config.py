"""Shapes of a model, as frozen dataclasses. Everything derivable is a property and never typed in twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CODES_STRIDE = 8  # pixels per image code, each way


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
    rope_stretch: float = 1.0  # positions of the global layers are divided by it (linear scaling, Chen et al. 2023)
    qk_norm: bool = True
    post_norm: bool = True  # a norm behind each sub-layer as well as before it
    query_size: float | None = None  # scores are divided by its square root; None: head_dim
    attention_cap: float | None = None  # scores s become cap·tanh(s / cap)
    logit_cap: float | None = None
    remat: bool = False  # training keeps only what enters each layer and computes the rest again, going back

    @property
    def score_scale(self) -> float:
        return (self.query_size or self.head_dim) ** -0.5


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
    plain: bool = False  # SigLIP's layers and positions (alhena/model/vision.py)
    remat: bool = False

    @property
    def patch_values(self) -> int:
        return self.patch * self.patch * 3

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels behind one soft token."""
        return self.patch * self.pool


@dataclass(frozen=True)
class Audio:
    """Conformer on chunks of log-mel frames: two stride-2 convolutions, then ``stack`` neighbours become one soft token."""

    width: int
    layers: int
    heads: int
    hidden: int
    kernel: int = 5
    mels: int = 128
    chunk: int = 128  # frames of 10 ms; attention stays inside a chunk
    stack: int = 2
    remat: bool = False

    @property
    def frames_per_token(self) -> int:
        return 4 * self.stack

    def tokens(self, frames: int) -> int:
        """Soft tokens of a chunk with that many valid frames."""
        return math.ceil(frames / self.frames_per_token)


@dataclass(frozen=True)
class Usm(Audio):
    """The conformer of the Universal Speech Model (alhena/model/usm.py): attention to what is near, in sounds of any length."""

    chunk: int = 1024
    stack: int = 4
    channels: tuple[int, int] = (128, 32)  # of the two convolutions
    block: int = 12  # queries that share a window of keys
    left: int = 13  # vectors that a query sees, its own among them
    right: int = 0  # and of those after it
    cap: float = 50.0  # scores s become cap·tanh(s / cap)


def audio(settings: Mapping[str, Any]) -> Audio:
    """The settings of an audio encoder, from the fields of one. Raises TypeError for fields that none has."""
    if "channels" not in settings:
        return Audio(**settings)
    return Usm(**{**settings, "channels": tuple(settings["channels"])})


@dataclass(frozen=True)
class ImageTokenizer:
    """Convolutional autoencoder with finite scalar quantisation: the levels give the codebook, one code per 8×8 pixels.

    ``structure`` says what there is to see in a cell whatever its colours, ``colour`` in which colours. With ``seeing`` 0 the encoder
    sees each cell alone; each residual block of it looks one cell further.
    """

    structure: tuple[int, ...]
    colour: tuple[int, ...]
    width: int
    seeing: int = 0  # residual blocks of the encoder
    painting: int = 2  # and of the decoder

    @property
    def levels(self) -> tuple[int, ...]:
        return self.structure + self.colour

    @property
    def factors(self) -> tuple[int, int]:
        return math.prod(self.structure), math.prod(self.colour)

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
    audio: Audio | None
    code_factors: tuple[int, int] | None = None  # structures and colours of the image codes (alhena/model/codes.py)
    compute: str = "float32"  # dtype of matmul operands; results are accumulated in float32
