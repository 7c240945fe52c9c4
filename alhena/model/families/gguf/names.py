"""Names of tensors and architectures in GGUF files, and those in Hugging Face's: the reader and the writer derive from these tables."""

from __future__ import annotations

PREFIX = "model."
NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
OUTPUT_MATRIX = {"output.weight": "lm_head.weight"}
LAYER_NAMES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# Gemma 1 has no norms after its sub-layers: in Hugging Face's files the one before the MLP has this name.
LAYER_NAMES_1 = {
    **{
        ours: theirs
        for ours, theirs in LAYER_NAMES.items()
        if not ours.startswith(("post_", "attn_q_norm", "attn_k_norm"))
    },
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
# What Gemma 3n and 4 have beside that.
NAMES_4 = {
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
PER_LAYER = {
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
}
LAYER_NAMES_3N = {
    **PER_LAYER,
    "altup_router_norm.weight": "altup.router_norm.weight",
    "altup_router.weight": "altup.modality_router.weight",
    "altup_predict_coef.weight": "altup.prediction_coefs.weight",
    "altup_correct_coef.weight": "altup.correction_coefs.weight",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "laurel_l.weight": "laurel.linear_left.weight",
    "laurel_r.weight": "laurel.linear_right.weight",
    "laurel_post_norm.weight": "laurel.post_laurel_norm.weight",
}
LAYER_NAMES_4 = {
    **PER_LAYER,
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
}
# The RoPE frequencies of Gemma 4's global layers are divided by these numbers: 1, or so many that nothing turns.
FREQUENCIES, NEVER = "rope_freqs.weight", 1e29
# llama.cpp knows the two models whose scores have another scale by their numbers of layers.
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
# Architectures, and the ``model_type`` of a text model in Hugging Face's files.
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
}
# Every n-th layer is global, where the file has no pattern.
DEFAULT_PATTERNS = {"gemma2": 2, "gemma3": 6}
# Of gemma2, where the file has no numbers: window, soft caps of attention and of logits.
GEMMA2_DEFAULTS = (4096, 50.0, 30.0)


def stores_plus_one(architecture: str, name: str) -> bool:
    """Whether a tensor is the scale of a norm that is stored with the one already added."""
    return architecture not in ("gemma3n", "gemma4") and name.endswith("norm.weight")


def layer_names(architecture: str) -> dict[str, str]:
    """Names of the tensors of a layer: ours to Hugging Face's."""
    more = {"gemma3n": LAYER_NAMES_3N, "gemma4": LAYER_NAMES_4}.get(architecture, {})
    return LAYER_NAMES_1 if architecture == "gemma" else LAYER_NAMES | more


def other_names(architecture: str) -> dict[str, str]:
    """Names of the tensors of no layer: ours to Hugging Face's."""
    return NAMES | (NAMES_4 if architecture in ("gemma3n", "gemma4") else {})
