"""Sizes to which prompts, batches and outputs are padded: one compilation for each combination in use."""

from __future__ import annotations

from collections.abc import Sequence

from alhena.batch import Batch, Example
from alhena.model import config
from alhena.tokens.examples.padding import padded_batch

TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072, 262_144)
PATCHES = (0, 64, 128, 256, 512, 1024, 2048, 2560, 4096, 5120, 8192, 16384, 32768)
CHUNKS = (0, 1, 2, 4, 8, 32, 128, 1024)
BATCH_SIZES = (1, 8, 32)
# Sequences that take a token in one step.
ROWS = (1, 2, 4, 8, 16)
OUTPUTS = (32, 128, 256, 1024, 4096)
# A request for more output tokens gets this many.
MAX_OUTPUT_TOKENS = OUTPUTS[-1]
# Of an answer of an imported model, where the request does not limit it.
IMPORTED_OUTPUT_TOKENS = OUTPUTS[-2]
# Of a prompt of a model whose own limit is not known.
MAX_PROMPT_TOKENS = 32768
# Bytes of the attention scores of one request's images.
MAX_VISION_BYTES = 1 << 30


def bucket(sizes: Sequence[int], needed: int, what: str) -> int:
    """The smallest size that holds ``needed``. Raises ValueError when none does."""
    for size in sizes:
        if needed <= size:
            return size
    raise ValueError(f"the prompt has {needed:,} {what}; at most {sizes[-1]:,} can be read")


def rows(slots: int) -> tuple[int, ...]:
    """Numbers of sequences for which a program of an engine with so many slots is compiled.

    >>> rows(4), rows(6)
    ((1, 2, 4), (1, 2, 4, 6))
    """
    return (*(size for size in ROWS if size < slots), slots)


def max_patches(c: config.Model, sequences: int = 1) -> int:
    """Image patches that one prompt may have.

    Attention of our own vision encoder is squared over all images of a prompt together: scores, weights and their operands are
    three arrays of float32 a head. The encoders of open weights attend inside each image.

    >>> decoder = config.Decoder(width=64, layers=1, heads=1, head_dim=64, hidden=64)
    >>> [max_patches(config.Model(9, 1, 2, decoder, config.Vision(96, 2, heads, 64), None)) for heads in (1, 4, 12)]
    [8192, 4096, 2560]
    """
    vision = c.vision
    if vision is None:
        return 0
    if not isinstance(vision, config.Vision) or vision.mean_pool:
        return PATCHES[-1] // sequences
    return max(n for n in PATCHES if sequences * n * n * 12 * vision.heads <= MAX_VISION_BYTES)


def check_fits(example: Example, c: config.Model, sequences: int, max_tokens: int) -> None:
    """Raises ValueError when a prompt has media that the model does not read, or is too long for it.

    ``sequences`` are prefilled at once for it; the memory of the vision encoder grows with their number.
    """
    if len(example.patches) and c.vision is None:
        raise ValueError("this model reads no images and no video")
    if len(example.frames) and c.audio is None:
        raise ValueError("this model reads no audio")
    tokens = len(example.tokens)
    if tokens > max_tokens:
        raise ValueError(f"the prompt has {tokens:,} tokens; at most {max_tokens:,} can be read")
    bucket(CHUNKS, len(example.frames), "audio chunks")
    limit = max_patches(c, sequences)
    if len(example.patches) > limit:
        raise ValueError(
            f"the images of the prompt have {len(example.patches):,} patches; "
            f"at most {limit:,} can be read at once: send fewer or smaller images"
        )


def padded(prompts: list[Example]) -> Batch:
    """Prompts as a batch of a few fixed shapes."""
    tokens = bucket(TOKENS, max(len(e.tokens) for e in prompts), "tokens")
    patches = bucket(PATCHES, max(len(e.patches) for e in prompts), "image patches")
    chunks = bucket(CHUNKS, max(len(e.frames) for e in prompts), "audio chunks")
    return padded_batch(prompts, tokens, patches, chunks)
