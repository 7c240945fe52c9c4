"""Image tokenizer: an autoencoder with finite scalar quantization (FSQ, Mentzer et al. 2023), one code per cell of 8×8 pixels.

    image [n, H, W, 3] ─ 8×8 cells ─ MLP ─ residual 3×3 blocks ─ 4 numbers, rounded to a few levels each ─► codes [n, H/8, W/8]
    codes ─ levels ─ linear ─ residual 3×3 blocks ─ linear ─ 8×8 cells ─► image

The blocks of the decoder mix neighboring cells, which gives smooth edges. The small encoder has no blocks: a code depends on its cell
alone, so equal cells have equal codes, which a small language model can learn. The large encoder has blocks, and its codes carry
more information (docs/results.md has both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alhena.files import write_json
from alhena.model import config, spec
from alhena.model.layers import rms_norm
from alhena.model.spec import matrix, stacked, vector
from alhena.model.storage.tensors import read_settings, regular
from alhena.model.storage.weights import check_size, read_tree, write_tree
from alhena.schema import parsed_whole
from alhena.shapes import Array, Float, Int, Shaped, UInt8, pytree

STRIDE = config.CODES_STRIDE
REPLICATED = (None, None)


@pytree
@dataclass(frozen=True)
class Blocks:
    """Weights of residual blocks: a 3×3 convolution and a 1×1 convolution."""

    norms: Array  # [blocks, W]
    wide: Array  # [blocks, 9·W, W]
    narrow: Array  # [blocks, W, W]


@pytree
@dataclass(frozen=True)
class Params:
    """Weights of the image tokenizer."""

    cells: Array  # [192, W]
    hidden: Array  # [W, W]
    encoder_blocks: Blocks | None  # None: the encoder processes each cell alone
    to_levels: Array  # [W, number of levels]
    from_levels: Array  # [number of levels, W]
    decoder_blocks: Blocks
    last_norm: Array  # [W]
    pixels: Array  # [W, 192]


def _blocks(wide: int, narrow: int, n: int, W: int) -> Blocks:
    """Specifications of ``n`` blocks; ``wide`` and ``narrow`` are the key numbers of their matrices."""
    block = Blocks(vector(W), matrix(wide, (9 * W, W), REPLICATED), matrix(narrow, (W, W), REPLICATED, gain=0.5))
    return stacked(n, block)


def weights(c: config.ImageTokenizer) -> Params:
    """Specifications of the weights, all replicated, since the model is small."""
    W, values, levels = c.width, STRIDE * STRIDE * 3, len(c.levels)
    return Params(
        cells=matrix(0, (values, W), REPLICATED),
        hidden=matrix(1, (W, W), REPLICATED),
        encoder_blocks=_blocks(7, 8, c.encoder_blocks, W) if c.encoder_blocks else None,
        to_levels=matrix(2, (W, levels), REPLICATED),
        from_levels=matrix(3, (levels, W), REPLICATED),
        decoder_blocks=_blocks(4, 5, c.decoder_blocks, W),
        last_norm=vector(W),
        pixels=matrix(6, (W, values), REPLICATED),
    )


def init(key: Array, c: config.ImageTokenizer) -> Params:
    """Random weights."""
    return spec.init(key, weights(c))


def quantize(z: Float[Array, "*batch d"], c: config.ImageTokenizer) -> Float[Array, "*batch d"]:
    """FSQ: bounds each number and rounds it to its levels (integers from 0), with a straight-through gradient."""
    top = jnp.array(c.levels, jnp.float32) - 1
    bounded = jax.nn.sigmoid(2 * z) * top
    return bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)


def _radices(c: config.ImageTokenizer) -> Int[Array, " d"]:
    """Weight of each level in the mixed-radix number of a code."""
    return jnp.array(np.cumprod([1, *c.levels[:-1]]), jnp.int32)


def to_codes(levels: Float[Array, "*batch d"], c: config.ImageTokenizer) -> Int[Array, "*batch"]:
    """Codes: mixed-radix numbers of the levels."""
    return jnp.sum(jnp.round(levels).astype(jnp.int32) * _radices(c), -1)


def to_level_values(codes: Int[Array, "*batch"], c: config.ImageTokenizer) -> Float[Array, "*batch d"]:
    """Inverse of :func:`to_codes`."""
    return ((codes[..., None] // _radices(c)) % jnp.array(c.levels, jnp.int32)).astype(jnp.float32)


def _residual_blocks(blocks: Blocks, x: Float[Array, "n h w W"]) -> Float[Array, "n h w W"]:
    """Applies residual blocks to a grid of cells."""
    n, h, w, _ = x.shape
    for norm, wide, narrow in zip(blocks.norms, blocks.wide, blocks.narrow, strict=True):
        y = jnp.pad(rms_norm(x, norm), ((0, 0), (1, 1), (1, 1), (0, 0)))
        neighborhood = [y[:, a : a + h, b : b + w] for a in range(3) for b in range(3)]
        y = jax.nn.gelu(jnp.concatenate(neighborhood, -1).reshape(n * h * w, -1) @ wide) @ narrow
        x = x + y.reshape(x.shape)
    return x


def encode_levels(params: Params, c: config.ImageTokenizer, images: Float[Array, "n H W 3"]) -> Float[Array, "n h w d"]:
    """Levels of images with values in -1..1, whose sides are multiples of 8."""
    n, height, width, _ = images.shape
    h, w = height // STRIDE, width // STRIDE
    cells = images.reshape(n, h, STRIDE, w, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n * h * w, -1)
    x = jax.nn.gelu(cells @ params.cells)
    x = x + jax.nn.gelu(x @ params.hidden)
    if params.encoder_blocks is not None:
        x = _residual_blocks(params.encoder_blocks, x.reshape(n, h, w, -1)).reshape(x.shape)
    return quantize(x @ params.to_levels, c).reshape(n, h, w, -1)


def decode_levels(params: Params, c: config.ImageTokenizer, levels: Float[Array, "n h w d"]) -> Float[Array, "n H W 3"]:
    """Images, with values about -1..1, from levels."""
    n, h, w, d = levels.shape
    centered = levels / (jnp.array(c.levels, jnp.float32) - 1) * 2 - 1
    x = _residual_blocks(params.decoder_blocks, (centered.reshape(-1, d) @ params.from_levels).reshape(n, h, w, -1))
    cells = rms_norm(x, params.last_norm).reshape(n * h * w, -1) @ params.pixels
    return cells.reshape(n, h, w, STRIDE, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * STRIDE, w * STRIDE, 3)


@partial(jax.jit, static_argnums=1)
def _encode(params: Params, c: config.ImageTokenizer, pixels: UInt8[Array, "n H W 3"]) -> Int[Array, "n h w"]:
    return to_codes(encode_levels(params, c, pixels.astype(jnp.float32) / 127.5 - 1), c)


@partial(jax.jit, static_argnums=1)
def _decode(params: Params, c: config.ImageTokenizer, codes: Int[Array, "n h w"]) -> UInt8[Array, "n H W 3"]:
    images = decode_levels(params, c, to_level_values(codes, c))
    return jnp.clip((images + 1) * 127.5, 0, 255).round().astype(jnp.uint8)


def encode_images(
    params: Params, c: config.ImageTokenizer, images: Sequence[np.ndarray], batch: int = 256
) -> list[np.ndarray]:
    """Codes int32 [H/8, W/8] of each uint8 image [H, W, 3], whose sides are multiples of 8. Images of one size share batches."""
    out: list[np.ndarray | None] = [None] * len(images)
    for shape in sorted({image.shape for image in images}):
        same_size = [i for i, image in enumerate(images) if image.shape == shape]
        for start in range(0, len(same_size), batch):
            indices = same_size[start : start + batch]
            # A constant batch size, so that nothing compiles again; the surplus is ignored.
            stack = np.zeros((batch, *shape), np.uint8)
            stack[: len(indices)] = [images[i] for i in indices]
            for i, codes in zip(indices, np.asarray(_encode(params, c, stack)), strict=False):
                out[i] = codes
    return [codes for codes in out if codes is not None]


def decode_codes(
    params: Params, c: config.ImageTokenizer, codes: Shaped[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """One image, H = 8h and W = 8w, from its grid of codes."""
    return np.asarray(_decode(params, c, jnp.asarray(codes, jnp.int32)[None])[0])


def save(folder: Path, params: Params, c: config.ImageTokenizer) -> None:
    """Writes ``image_tokenizer.safetensors`` and ``image_tokenizer.json``."""
    write_tree(folder / "image_tokenizer.safetensors", params)
    write_json(folder / "image_tokenizer.json", asdict(c))


def load(folder: Path) -> tuple[Params, config.ImageTokenizer]:
    """Reads the files of :func:`save`. Raises ValueError naming the file that is missing, damaged or of another configuration."""
    path, arrays = folder / "image_tokenizer.json", regular(folder / "image_tokenizer.safetensors")
    c = parsed_whole(config.ImageTokenizer, read_settings(path), path)
    check_size(arrays, arrays.stat().st_size, c.min_bytes)
    return read_tree(arrays, weights(c)), c
