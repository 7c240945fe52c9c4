"""Tiny models of the reference implementation, one for each family of open weights; used by ``make_open_weights.py`` alone."""

from __future__ import annotations

from unittest import mock

import torch
import transformers as hf
from transformers.models.gemma3n import modeling_gemma3n

VOCABULARY = 320
# Ids below it are text; greedy answers consist of them.
TEXT = 278
BOS = 2
# Marks and placeholders of Gemma 3 and 4.
IMAGE_START, IMAGE, IMAGE_END, AUDIO_START, AUDIO, AUDIO_END, VIDEO = range(290, 297)
# Gemma 3n: the rows of its two embedders follow the text.
N_IMAGE_START, N_AUDIO_START = 278, 279
N_VISION_OFFSET, N_AUDIO_OFFSET = 280, 296
N_IMAGE, N_AUDIO = N_VISION_OFFSET + 1, N_AUDIO_OFFSET + 1
# Soft tokens of each sound, padding included (188 in the published models).
N_SOUND_TOKENS = 8

TEXT_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 256, "sliding_window": 4,
}  # fmt: skip
VISION_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MARKS_4 = {
    "boi_token_id": IMAGE_START, "image_token_id": IMAGE, "eoi_token_id": IMAGE_END, "boa_token_id": AUDIO_START,
    "audio_token_id": AUDIO, "eoa_token_index": AUDIO_END, "video_token_id": VIDEO,
}  # fmt: skip
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def pattern(layers: int, every: int) -> list[str]:
    return [LOCAL if (i + 1) % every else GLOBAL for i in range(layers)]


def gemma3_rope(factor: float) -> dict:
    return {
        GLOBAL: {"rope_type": "linear", "factor": factor, "rope_theta": 1_000_000.0},
        LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
    }


def gemma3_text() -> torch.nn.Module:
    """Eight layers: a global one after five local ones, then a tail of two local ones."""
    settings = hf.Gemma3TextConfig(
        **TEXT_SIZES, num_hidden_layers=8, query_pre_attn_scalar=10, rope_parameters=gemma3_rope(8.0)
    )
    return hf.Gemma3ForCausalLM(settings)


def gemma3_vision() -> torch.nn.Module:
    """Images of 8×8 patches, 16 soft tokens each."""
    text = hf.Gemma3TextConfig(
        **TEXT_SIZES, num_hidden_layers=7, query_pre_attn_scalar=10, rope_parameters=gemma3_rope(2.0)
    )
    vision = hf.SiglipVisionConfig(**VISION_SIZES, image_size=32, patch_size=4, vision_use_head=False)
    marks = {"boi_token_index": IMAGE_START, "image_token_index": IMAGE, "eoi_token_index": IMAGE_END}
    settings = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, **marks)
    return hf.Gemma3ForConditionalGeneration(settings)


def gemma3n_settings() -> hf.Gemma3nTextConfig:
    """Six layers, each second one global; the last two share keys and values, the first three are sparse."""
    return hf.Gemma3nTextConfig(
        **TEXT_SIZES, num_hidden_layers=6, layer_types=pattern(6, 2), num_kv_shared_layers=2, laurel_rank=4,
        vocab_size_per_layer_input=N_VISION_OFFSET, hidden_size_per_layer_input=4,
        activation_sparsity_pattern=[0.75] * 3 + [0.0] * 3, final_logit_softcapping=1.5,
    )  # fmt: skip


def gemma3n_text() -> torch.nn.Module:
    return hf.Gemma3nForCausalLM(gemma3n_settings())


class UnusedTower(torch.nn.Module):
    """Stands for the image tower of Gemma 3n, which needs another package: a folder contains its tensors, nothing uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))


def gemma3n_audio() -> torch.nn.Module:
    audio = hf.Gemma3nAudioConfig(
        vocab_size=VOCABULARY - N_AUDIO_OFFSET, vocab_offset=N_AUDIO_OFFSET, hidden_size=16, conf_num_attention_heads=2,
        conf_num_hidden_layers=2, input_feat_size=16, conf_attention_chunk_size=4, conf_attention_context_left=5,
        conf_attention_logit_cap=3.0, conf_reduction_factor=2, sscp_conv_channel_size=[6, 4],
    )  # fmt: skip
    vision = hf.Gemma3nVisionConfig(
        vocab_size=N_AUDIO_OFFSET - N_VISION_OFFSET, vocab_offset=N_VISION_OFFSET, hidden_size=12
    )
    settings = hf.Gemma3nConfig(
        text_config=gemma3n_settings(), vision_config=vision, audio_config=audio, audio_soft_tokens_per_image=N_SOUND_TOKENS,
        boi_token_id=N_IMAGE_START, eoi_token_id=N_VISION_OFFSET, image_token_id=N_IMAGE, boa_token_id=N_AUDIO_START,
        eoa_token_id=N_AUDIO_OFFSET, audio_token_id=N_AUDIO,
    )  # fmt: skip
    build = hf.AutoModel.from_config

    def without_images(config: hf.PreTrainedConfig, **options: object) -> torch.nn.Module:
        return UnusedTower() if isinstance(config, hf.Gemma3nVisionConfig) else build(config, **options)

    with mock.patch.object(modeling_gemma3n.AutoModel, "from_config", without_images):
        return hf.Gemma3nForConditionalGeneration(settings)


def gemma4_vision(**options: object) -> hf.Gemma4VisionConfig:
    return hf.Gemma4VisionConfig(
        **VISION_SIZES, num_key_value_heads=2, head_dim=8, patch_size=4, position_embedding_size=32, **options
    )


def gemma4_small() -> torch.nn.Module:
    """Like E2B: per-layer inputs, the last two layers share keys and values and have wider MLPs, clipped towers."""
    text = hf.Gemma4TextConfig(
        **TEXT_SIZES, num_hidden_layers=6, layer_types=pattern(6, 2), num_kv_shared_layers=2, use_double_wide_mlp=True,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=4, final_logit_softcapping=1.5,
        global_head_dim=16,
    )  # fmt: skip
    # As many mel bins as channels of the first convolution: the reference needs it.
    audio = hf.Gemma4AudioConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, subsampling_conv_channels=[16, 4], output_proj_dims=20,
        attention_chunk_size=4, attention_context_left=5, attention_logit_cap=3.0,
    )  # fmt: skip
    vision = gemma4_vision(use_clipped_linears=True)
    return hf.Gemma4ForConditionalGeneration(
        hf.Gemma4Config(text_config=text, vision_config=vision, audio_config=audio, **MARKS_4)
    )


def gemma4_large() -> torch.nn.Module:
    """Like 31B: values are keys in global layers, which have one key head; image blocks; a standardized image tower."""
    text = hf.Gemma4TextConfig(
        **TEXT_SIZES, num_hidden_layers=6, layer_types=pattern(6, 3), hidden_size_per_layer_input=0, attention_k_eq_v=True,
        final_logit_softcapping=1.5, global_head_dim=16, num_global_key_value_heads=1,
        use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = gemma4_vision(standardize=True)
    return hf.Gemma4ForConditionalGeneration(hf.Gemma4Config(text_config=text, vision_config=vision, **MARKS_4))


def gemma4_moe() -> torch.nn.Module:
    """Like 26B-A4B: eight experts, three chosen; their width is a multiple of four, which the reference needs."""
    text = hf.Gemma4TextConfig(
        **TEXT_SIZES, num_hidden_layers=6, layer_types=pattern(6, 3), hidden_size_per_layer_input=0, attention_k_eq_v=True,
        final_logit_softcapping=1.5, global_head_dim=16, num_global_key_value_heads=1, enable_moe_block=True,
        num_experts=8, top_k_experts=3, moe_intermediate_size=12,
    )  # fmt: skip
    return hf.Gemma4ForCausalLM(text)


def gemma4_unified() -> torch.nn.Module:
    """Like 12B: no encoders; image patches of 6×6 pixels, 16 samples of sound a token."""
    text = hf.Gemma4UnifiedTextConfig(
        **TEXT_SIZES, num_hidden_layers=6, layer_types=pattern(6, 3), attention_k_eq_v=True, final_logit_softcapping=1.5,
        global_head_dim=16, num_global_key_value_heads=1, use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = hf.Gemma4UnifiedVisionConfig(
        patch_size=2, pooling_kernel_size=3, mm_embed_dim=24, output_proj_dims=24, mm_posemb_size=16
    )
    audio = hf.Gemma4UnifiedAudioConfig(audio_embed_dim=16)
    return hf.Gemma4UnifiedForConditionalGeneration(
        hf.Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=audio, **MARKS_4)
    )


BUILDERS = {
    f.__name__: f
    for f in (
        gemma3_text, gemma3_vision, gemma3n_text, gemma3n_audio, gemma4_small, gemma4_large, gemma4_moe, gemma4_unified,
    )
}  # fmt: skip


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random numbers for every tensor that is stored: norms, scalars, clip bounds and tables too, none of them neutral."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            last = name.rsplit(".", 1)[-1]
            if last in ("input_min", "output_min", "input_max", "output_max"):
                bound = 0.8 + 0.8 * torch.rand(tensor.shape, generator=generator)
                value = -bound if last.endswith("min") else bound
            elif last in ("layer_scalar", "std_scale", "scale", "per_expert_scale") or is_unit_norm(model, name):
                value = 1 + 0.25 * noise
            elif tensor.ndim < 2 or "norm" in name or "position" in name or "pos_embedding" in name:
                value = 0.3 * noise
            elif "embed_tokens" in name or name.endswith("lm_head.weight") or "embedding.weight" in name:
                # Small, or tied embeddings would make every answer repeat its last token.
                value = 0.06 * noise
            elif last == "mm_input_projection_weight":
                value = noise / tensor.shape[0] ** 0.5
            else:
                value = noise / tensor[0].numel() ** 0.5
                value = noise / tensor.shape[-1] ** 0.5 if "experts" in name else value
            tensor.copy_(value)


def is_unit_norm(model: torch.nn.Module, name: str) -> bool:
    """Whether a weight is the scale of a norm whose neutral value is one; Gemma 3's own norms multiply by 1 + weight."""
    owner = model.get_submodule(name.rpartition(".")[0])
    is_norm = name.endswith("weight") and "Norm" in type(owner).__name__
    return is_norm and type(owner).__name__ != "Gemma3RMSNorm"
