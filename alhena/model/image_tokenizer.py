"""Image tokenizer: an autoencoder with finite scalar quantization (FSQ, Mentzer et al. 2023), one code for 8×8 pixels.

    image [n, H, W, 3] ─ 8×8 cells ─ MLP ─ residual 3×3 blocks ─ 4 numbers, rounded to a few levels each ─► codes [n, H/8, W/8]
    codes ─ levels ─ linear ─ residual 3×3 blocks ─ linear ─ 8×8 cells ─► image

The decoder looks at a cell's neighbors and draws smooth edges. The small encoder has no blocks and sees each cell alone, so equal cells
have equal codes, which a small language model can learn; the large one looks around and says more (docs/results.md has both).
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
from alhena.model.tensors import read_settings, regular
from alhena.model.weights import check_size, read_tree, write_tree
from alhena.schema import parsed_whole
from alhena.shapes import Array, Float, Int, UInt8, pytree

STRIDE = config.CODES_STRIDE


@pytree
@dataclass(frozen=True)
class Blocks:
    """Residual 3×3 blocks."""

    norms: Array  # [blocks, W]
    wide: Array  # [blocks, 9·W, W]
    narrow: Array  # [blocks, W, W]


@pytree
@dataclass(frozen=True)
class Params:
    cells: Array  # [192, W]
    hidden: Array  # [W, W]
    encoder_blocks: Blocks | None  # None: each cell alone
    to_levels: Array  # [W, number of levels]
    from_levels: Array  # [number of levels, W]
    decoder_blocks: Blocks
    last_norm: Array  # [W]
    pixels: Array  # [W, 192]


def _blocks(wide: int, narrow: int, n: int, W: int) -> Blocks:
    """Blocks whose matrices are drawn with the keys of those numbers."""
    whole = (None, None)
    block = Blocks(vector(W), matrix(wide, (9 * W, W), whole), matrix(narrow, (W, W), whole, gain=0.5))
    return stacked(n, block)


def weights(c: config.ImageTokenizer) -> Params:
    """The specification of every weight; the model is small, so every device has all of it."""
    W, values, levels, whole = c.width, STRIDE * STRIDE * 3, len(c.levels), (None, None)
    return Params(
        cells=matrix(0, (values, W), whole),
        hidden=matrix(1, (W, W), whole),
        encoder_blocks=_blocks(7, 8, c.encoder_blocks, W) if c.encoder_blocks else None,
        to_levels=matrix(2, (W, levels), whole),
        from_levels=matrix(3, (levels, W), whole),
        decoder_blocks=_blocks(4, 5, c.decoder_blocks, W),
        last_norm=vector(W),
        pixels=matrix(6, (W, values), whole),
    )


def init(key: Array, c: config.ImageTokenizer) -> Params:
    return spec.init(key, weights(c))


def quantize(z: Float[Array, "... d"], c: config.ImageTokenizer) -> Float[Array, "... d"]:
    """Bounds each number and rounds it to its levels (integers from 0); gradients pass straight through."""
    top = jnp.array(c.levels, jnp.float32) - 1
    bounded = jax.nn.sigmoid(2 * z) * top
    return bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)


def to_codes(levels: Float[Array, "... d"], c: config.ImageTokenizer) -> Int[Array, " ..."]:
    """Mixed-radix number of the level indices."""
    places = jnp.array(np.cumprod([1, *c.levels[:-1]]), jnp.int32)
    return jnp.sum(jnp.round(levels).astype(jnp.int32) * places, -1)


def to_level_values(codes: Int[Array, " ..."], c: config.ImageTokenizer) -> Float[Array, "... d"]:
    """Inverse of :func:`to_codes`."""
    places = jnp.array(np.cumprod([1, *c.levels[:-1]]), jnp.int32)
    return ((codes[..., None] // places) % jnp.array(c.levels, jnp.int32)).astype(jnp.float32)


def _residual_blocks(blocks: Blocks, x: Float[Array, "n h w W"]) -> Float[Array, "n h w W"]:
    n, h, w, _ = x.shape
    for norm, wide, narrow in zip(blocks.norms, blocks.wide, blocks.narrow, strict=True):
        y = jnp.pad(rms_norm(x, norm), ((0, 0), (1, 1), (1, 1), (0, 0)))
        near = [y[:, a : a + h, b : b + w] for a in range(3) for b in range(3)]
        y = jax.nn.gelu(jnp.concatenate(near, -1).reshape(n * h * w, -1) @ wide) @ narrow
        x = x + y.reshape(x.shape)
    return x


def encode_levels(params: Params, c: config.ImageTokenizer, images: Float[Array, "n H W 3"]) -> Float[Array, "n h w d"]:
    """Quantized levels of images in -1..1 whose sides are multiples of 8."""
    n, height, width, _ = images.shape
    h, w = height // STRIDE, width // STRIDE
    cells = images.reshape(n, h, STRIDE, w, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n * h * w, -1)
    x = jax.nn.gelu(cells @ params.cells)
    x = x + jax.nn.gelu(x @ params.hidden)
    if params.encoder_blocks is not None:
        x = _residual_blocks(params.encoder_blocks, x.reshape(n, h, w, -1)).reshape(x.shape)
    return quantize(x @ params.to_levels, c).reshape(n, h, w, -1)


def decode_levels(params: Params, c: config.ImageTokenizer, levels: Float[Array, "n h w d"]) -> Float[Array, "n H W 3"]:
    """Images, about -1..1, from levels."""
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
    """Codes int32 [rows, columns] of uint8 images whose sides are multiples of 8; images of one size go together."""
    out: list[np.ndarray | None] = [None] * len(images)
    for shape in sorted({image.shape for image in images}):
        places = [i for i, image in enumerate(images) if image.shape == shape]
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            stack = np.zeros((batch, *shape), np.uint8)
            stack[: len(some)] = [images[i] for i in some]
            for i, codes in zip(some, np.asarray(_encode(params, c, stack)), strict=False):
                out[i] = codes
    return [codes for codes in out if codes is not None]


def decode_codes(params: Params, c: config.ImageTokenizer, codes: np.ndarray) -> np.ndarray:
    """One grid of codes int [rows, columns] to uint8 [8·rows, 8·columns, 3]."""
    return np.asarray(_decode(params, c, jnp.asarray(codes, jnp.int32)[None])[0])


def save(folder: Path, params: Params, c: config.ImageTokenizer) -> None:
    write_tree(folder / "image_tokenizer.safetensors", params)
    write_json(folder / "image_tokenizer.json", asdict(c))


def load(folder: Path) -> tuple[Params, config.ImageTokenizer]:
    """Raises ValueError that names the file when it is missing or of another tokenizer."""
    path, arrays = folder / "image_tokenizer.json", regular(folder / "image_tokenizer.safetensors")
    c = parsed_whole(config.ImageTokenizer, read_settings(path), path)
    check_size(arrays, arrays.stat().st_size, c.least_bytes)
    return read_tree(arrays, weights(c)), c
