"""Open encoders in: SigLIP's vision tower and Gemma 3n's audio encoder (USM) as weights of ours, from Hugging Face's layout.

    config.json, model.safetensors  ── read_siglip ──►  vision.Vision, config.Vision(plain=True)
                                    ── read_usm ────►  usm.Usm, config.Usm

Alone or inside a larger model (SigLIP, PaliGemma, Gemma 3; Gemma 3n): the names are the same behind a prefix. A linear map is
``[out, in]`` there and ``[in, out]`` here, a convolution ``[out, in, height, width]`` is our ``[height·width·in, out]``, a scale is an
offset from one. An image that is no square keeps its shape in a part of the tower's square, where the reference squeezes it; a square
one at the tower's size is seen alike. What comes out are the last hidden states; the projection to a decoder is
nobody's and starts at random:

    seeing, c = read_siglip(folder, width=2048, key=jax.random.key(0))
    params = replace(params, vision=seeing)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from alhena.model import config
from alhena.model.encoders import usm, vision
from alhena.model.families.hf_settings import settings_of
from alhena.model.spec import normal
from alhena.model.tensors import Read, Tensors, read_settings
from alhena.model.weights import check_size
from alhena.schema import shown

T = TypeVar("T")
C = TypeVar("C", config.Vision, config.Usm)

SIGLIP_PREFIXES = (
    "",
    "vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)
USM_PREFIXES = ("", "audio_tower.", "model.audio_tower.")
HALF_A_MINUTE = 3008  # frames: the longest sound Gemma 3n hears
# Of what our code has only one.
SIGLIP_ALWAYS: Mapping[str, Sequence[Any]] = {
    "layer_norm_eps": (vision.LAYER_EPSILON,), "hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,),
    "model_type": ("siglip_vision_model",), "vision_use_head": (True, False, None),
    "projection_dim": (None, 2048), "projector_hidden_act": (None, "gelu_fast"), "num_image_tokens": (None, 256),
}  # fmt: skip
USM_ALWAYS: Mapping[str, Sequence[Any]] = {
    "rms_norm_eps": (1e-6,), "sscp_conv_group_norm_eps": (usm.GROUP_EPSILON,), "conf_residual_weight": (0.5,),
    "gradient_clipping": (1e10,), "sscp_conv_kernel_size": ([[3, 3], [3, 3]],), "sscp_conv_stride_size": ([[2, 2], [2, 2]],),
    "model_type": ("gemma3n_audio",),
}  # fmt: skip


@dataclass(frozen=True)
class Siglip:
    """What a SigLIP configuration holds; the defaults are those of its class, which published files leave out."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16


@dataclass(frozen=True)
class Gemma3nAudio:
    """The same of Gemma 3n's audio encoder."""

    input_feat_size: int = 128
    hidden_size: int = 1536
    conf_num_attention_heads: int = 8
    conf_num_hidden_layers: int = 12
    conf_conv_kernel_size: int = 5
    conf_reduction_factor: int = 4
    conf_attention_chunk_size: int = 12
    conf_attention_context_left: int = 13
    conf_attention_context_right: int = 0
    conf_attention_logit_cap: float = 50.0
    sscp_conv_channel_size: tuple[int, int] = (128, 32)
    # Of the embedder behind the encoder, which is not read.
    vocab_size: int = 128
    vocab_offset: int = 262_272


def _settings(
    path: Path, inside: str, kind: type[T], always: Mapping[str, Sequence[Any]], prefixes: Sequence[str], known: str
) -> tuple[T, Tensors]:
    """The encoder's configuration and its tensors. Raises ValueError when it is of another kind, or has what ours cannot do."""
    stored = read_settings(path)
    own = stored.get(inside, stored)
    found, wanted = own.get("model_type") if isinstance(own, Mapping) else own, always["model_type"][0]
    if found != wanted:
        raise ValueError(f"{path}: an encoder of type {shown(found)}, not {wanted}")
    settings = settings_of(kind, own, always, path, inside if inside in stored else "")
    return settings, Tensors(path.parent, prefixes, known)


def _configured(path: Path, tensors: Tensors, make: Callable[[], C]) -> C:
    """Our configuration, if it is one and the file can hold its weights. Raises ValueError that names the file."""
    try:
        c = make()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_size(path.parent, tensors.nbytes, c.layers * c.width * (3 * c.width + 2 * c.hidden))
    return c


class _Stacks:
    """Tensors of all layers, as our stacked fields; of numpy until the encoder is whole."""

    def __init__(self, read: Read, pattern: str, layers: int) -> None:
        self._read, self._places = read, [pattern.format(i) for i in range(layers)]

    def of(self, name: str, *shape: int) -> Any:
        return np.stack([self._read(place + name, shape) for place in self._places])

    def scale(self, name: str, width: int) -> Any:
        return self.of(f"{name}.weight", width) - 1

    def product(self, *names: str, inner: int, outer: int) -> Any:
        """``[layers, inner, outer]``, of one linear map or of several side by side."""
        each = outer // len(names)
        return np.concatenate([self.of(f"{name}.weight", each, inner) for name in names], 1).swapaxes(1, 2)


def _kernel(read: Read, name: str, outer: int, inner: int, side: int) -> Any:
    return read(name, (outer, inner, side, side)).transpose(2, 3, 1, 0).reshape(-1, outer)


def read_siglip(folder: Path, width: int, key: jax.Array, pool: int = 2) -> tuple[vision.Vision, config.Vision]:
    """The tower in float32, for a decoder of that width; ``pool``² patches become one soft token.

    Raises ValueError that names the file when the folder holds no SigLIP.
    """
    path, known = folder / "config.json", "post_layernorm.weight"
    s, tensors = _settings(path, "vision_config", Siglip, SIGLIP_ALWAYS, SIGLIP_PREFIXES, known)
    E, F, n, patch = s.hidden_size, s.intermediate_size, s.num_hidden_layers, s.patch_size
    side, heads = s.image_size // max(patch, 1), s.num_attention_heads
    make = partial(config.Vision, E, n, heads, F, patch=patch, pool=pool, side=side, plain=True)
    c = _configured(path, tensors, make)
    read: Callable[..., Any] = tensors.read
    layers, qkv = _Stacks(read, "encoder.layers.{}.", n), [f"self_attn.{x}_proj" for x in "qkv"]
    params = vision.Vision(
        patch=_kernel(read, "embeddings.patch_embedding.weight", E, 3, patch),
        places=vision.Square(
            read("embeddings.position_embedding.weight", (side**2, E)), read("embeddings.patch_embedding.bias", (E,))
        ),
        layers=vision.Layers(
            attention_norm=layers.scale("layer_norm1", E),
            qkv=layers.product(*qkv, inner=E, outer=3 * E),
            output=layers.product("self_attn.out_proj", inner=E, outer=E),
            mlp_norm=layers.scale("layer_norm2", E),
            gate=None,
            up=layers.product("mlp.fc1", inner=E, outer=F),
            down=layers.product("mlp.fc2", inner=F, outer=E),
            biases=vision.Biases(
                attention_norm=layers.of("layer_norm1.bias", E),
                qkv=jnp.concatenate([layers.of(f"{name}.bias", E) for name in qkv], 1),
                output=layers.of("self_attn.out_proj.bias", E),
                mlp_norm=layers.of("layer_norm2.bias", E),
                up=layers.of("mlp.fc1.bias", F),
                down=layers.of("mlp.fc2.bias", E),
            ),
        ),
        norm=read("post_layernorm.weight", (E,)) - 1,
        project=normal(key, pool**2 * E, width),
        norm_bias=read("post_layernorm.bias", (E,)),
    )
    tensors.finish_part(unused=("head.",))  # SigLIP's own pooling of patches to one vector
    return jax.tree.map(jnp.asarray, params), c


def read_usm(folder: Path, width: int, key: jax.Array, chunk: int = HALF_A_MINUTE) -> tuple[usm.Usm, config.Usm]:
    """The encoder in float32, for a decoder of that width. A sound within ``chunk`` frames is heard as the reference hears it.

    Raises ValueError that names the file when the folder holds no audio encoder of Gemma 3n.
    """
    path, start = folder / "config.json", "subsample_conv_projection."
    known = start + "input_proj_linear.weight"
    s, tensors = _settings(path, "audio_config", Gemma3nAudio, USM_ALWAYS, USM_PREFIXES, known)
    E, F, n, heads = s.hidden_size, 4 * s.hidden_size, s.conf_num_hidden_layers, s.conf_num_attention_heads
    (first, second), M = s.sscp_conv_channel_size, s.input_feat_size
    if chunk % (4 * max(s.conf_reduction_factor, 1)):
        raise ValueError(f"chunks of {chunk} frames; this encoder needs a multiple of {4 * s.conf_reduction_factor}")
    c = _configured(path, tensors, lambda: config.Usm(
        E, n, heads, F, kernel=s.conf_conv_kernel_size, mels=M, chunk=chunk, stack=s.conf_reduction_factor,
        channels=(first, second), block=s.conf_attention_chunk_size, left=s.conf_attention_context_left,
        right=s.conf_attention_context_right, cap=s.conf_attention_logit_cap,
    ))  # fmt: skip
    read: Callable[..., Any] = tensors.read
    layers = _Stacks(read, "conformer.{}.", n)

    def mlp(ours: str, there: str) -> dict[str, Any]:
        return {
            f"{ours}_norm": layers.scale(f"{there}.pre_layer_norm", E),
            f"{ours}_up": layers.product(f"{there}.ffw_layer_1", inner=E, outer=F),
            f"{ours}_down": layers.product(f"{there}.ffw_layer_2", inner=F, outer=E),
            f"{ours}_post_norm": layers.scale(f"{there}.post_layer_norm", E),
        }

    inside = usm.Layers(
        **mlp("first", "ffw_layer_start"),
        attention_norm=layers.scale("attention.pre_attn_norm", E),
        qkv=layers.product(*(f"attention.attn.{x}_proj" for x in "qkv"), inner=E, outer=3 * E),
        query_scale=layers.of("attention.attn.per_dim_scale", E // heads),
        distance=layers.product("attention.attn.relative_position_embedding.pos_proj", inner=E, outer=E),
        output=layers.product("attention.post", inner=E, outer=E),
        attention_post_norm=layers.scale("attention.post_norm", E),
        convolution_norm=layers.scale("lconv1d.pre_layer_norm", E),
        convolution_in=layers.product("lconv1d.linear_start", inner=E, outer=2 * E),
        depthwise=layers.of("lconv1d.depthwise_conv1d.weight", E, 1, c.kernel)[:, :, 0].swapaxes(1, 2),
        depthwise_norm=layers.scale("lconv1d.conv_norm", E),
        convolution_out=layers.product("lconv1d.linear_end", inner=E, outer=E),
        **mlp("second", "ffw_layer_end"),
        last_norm=layers.scale("norm", E),
    )
    params = usm.Usm(
        kernel_1=_kernel(read, start + "conv_0.conv.weight", first, 1, 3),
        scale_1=read(start + "conv_0.norm.weight", (first,)) - 1,
        kernel_2=_kernel(read, start + "conv_1.conv.weight", second, first, 3),
        scale_2=read(start + "conv_1.norm.weight", (second,)) - 1,
        subsampled=read(start + "input_proj_linear.weight", (E, M // 4 * second)).T,
        layers=inside,
        project=normal(key, E, width),
    )
    tensors.finish_part()
    return jax.tree.map(jnp.asarray, params), c
