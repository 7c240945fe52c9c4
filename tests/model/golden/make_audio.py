"""Writes the golden files of ``tests/model/test_audio_encoders.py`` and ``tests/media/test_audio_features.py``.

python -m pip install torch transformers     (for this script only)
python tests/model/golden/make_audio.py      writes gemma3n_audio/, gemma4_audio/, gemma4_unified_audio/ and audio_features.npz

Tiny random encoders of the reference implementation and their outputs. Norms, biases and bounds are random too: a scale of one or a
bound that clips nothing would hide a missing one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    Gemma3nAudioFeatureExtractor,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
    Gemma4AudioConfig,
    Gemma4AudioFeatureExtractor,
    Gemma4AudioModel,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4UnifiedAudioConfig,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedTextConfig,
)
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder
from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedMultimodalEmbedder

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
WIDTH = 16  # of the decoder


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights and bounds; scales are around one."""
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    for name, bound in model.named_buffers():
        if name.endswith(("_min", "_max")):
            size = torch.rand(()) * 0.6 + 0.3
            bound.copy_(-size if name.endswith("_min") else size)
    return model.eval()


def save(folder: str, settings: dict[str, Any], modules: dict[str, torch.nn.Module], **golden: np.ndarray) -> None:
    """Writes the settings, the tensors as a complete model has them, and the golden numbers."""
    path = HERE / folder
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
    state = {f"{prefix}.{name}": t for prefix, module in modules.items() for name, t in module.state_dict().items()}
    save_file({name: t.contiguous() for name, t in state.items()}, path / "model.safetensors", {"format": "pt"})
    np.savez_compressed(path / "golden.npz", **golden)


def stored(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def gemma3n() -> None:
    """Audio of full length, one frame less, about half, and three frames, each alone; then the padding that the model puts after it."""
    settings = Gemma3nAudioConfig(
        hidden_size=24, conf_num_attention_heads=3, conf_num_hidden_layers=2, input_feat_size=16, conf_attention_chunk_size=4,
        conf_attention_context_left=5, conf_attention_context_right=2, conf_attention_logit_cap=3.0, conf_conv_kernel_size=5,
        conf_reduction_factor=2, sscp_conv_channel_size=[6, 4],
    )  # fmt: skip
    text, vision = Gemma3nTextConfig(hidden_size=WIDTH), Gemma3nVisionConfig(hidden_size=20)
    tower = scrambled(Gemma3nAudioEncoder(settings))
    embedder, vision_embedder = (scrambled(Gemma3nMultimodalEmbedder(c, text)) for c in (settings, vision))
    lengths = np.array([72, 71, 37, 3])
    frames = RNG.standard_normal((4, 72, 16)).astype(np.float32)
    vectors = []
    with torch.no_grad():
        padding = embedder(input_ids=torch.tensor([[262_399]]))[0]
        for audio, length in zip(frames, lengths, strict=True):
            mel = torch.from_numpy(audio[None, :length])
            out = tower(mel, torch.zeros(1, int(length), dtype=torch.bool))
            assert not out.audio_mel_mask.any()
            soft = embedder(inputs_embeds=out.last_hidden_state)[0]
            vectors.append(torch.cat([soft, padding.expand(9 - len(soft), -1)]).numpy())
        rows = [
            e(input_ids=torch.arange(first, first + 128))
            for e, first in ((vision_embedder, 262_144), (embedder, 262_272))
        ]
    modules = {"model.audio_tower": tower, "model.embed_audio": embedder, "model.embed_vision": vision_embedder}
    config = {"audio_config": stored(settings), "vision_config": {"hidden_size": 20}}
    golden = {"vectors": np.stack(vectors), "rows": torch.cat(rows).numpy()}
    save("gemma3n_audio", config, modules, frames=frames, lengths=lengths, **golden)


def gemma4() -> None:
    """Two audios, longer than the window of the attention, padded to one length; one bound is infinite."""
    settings = Gemma4AudioConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, subsampling_conv_channels=[16, 4], attention_chunk_size=4,
        attention_context_left=5, attention_logit_cap=3.0, output_proj_dims=20,
    )  # fmt: skip
    settings._attn_implementation = "eager"
    tower = scrambled(Gemma4AudioModel(settings))
    tower.layers[1].self_attn.post.input_max.fill_(float("inf"))
    embedder = scrambled(Gemma4MultimodalEmbedder(settings, Gemma4TextConfig(hidden_size=WIDTH)))
    lengths = np.array([41, 60])
    frames = RNG.standard_normal((2, 64, 16)).astype(np.float32)
    mask = torch.from_numpy(np.arange(64) < lengths[:, None])
    with torch.no_grad():
        out = tower(torch.from_numpy(frames), mask)
        vectors = embedder(out.last_hidden_state)
    modules = {"model.audio_tower": tower, "model.embed_audio": embedder}
    golden = {"frames": frames, "lengths": lengths, "vectors": vectors.numpy(), "valid": out.attention_mask.numpy()}
    save("gemma4_audio", {"audio_config": stored(settings)}, modules, **golden)


def unified() -> None:
    settings = Gemma4UnifiedAudioConfig(audio_embed_dim=40)
    embedder = scrambled(Gemma4UnifiedMultimodalEmbedder(settings, Gemma4UnifiedTextConfig(hidden_size=WIDTH)))
    frames = RNG.standard_normal((2, 7, 40)).astype(np.float32)
    with torch.no_grad():
        vectors = embedder(torch.from_numpy(frames)).numpy()
    config = {"audio_config": stored(settings)}
    save("gemma4_unified_audio", config, {"model.embed_audio": embedder}, frames=frames, vectors=vectors)


def features() -> None:
    """Features of the first samples of a sweep with noise and silence; numbers of frames and tokens of other lengths."""
    time = np.arange(8000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time) + 0.05 * RNG.standard_normal(8000)
    sound = np.concatenate([sound, np.zeros(1600)]).astype(np.float32)
    golden: dict[str, np.ndarray] = {"sound": sound}
    gemma4 = Gemma4AudioFeatureExtractor()
    for n in (161, 320, 321, 641, 1000, 4801, 9600):
        out = gemma4([sound[:n]], return_tensors="np")
        golden[f"gemma4_{n}"] = out["input_features"][0][out["input_features_mask"][0]]
    for n in (513, 600, 4801, 9600):
        out = Gemma3nAudioFeatureExtractor()([sound[:n]], return_tensors="np")
        assert out["input_features_mask"].all()
        golden[f"gemma3n_{n}"] = out["input_features"][0]
    golden["unified_1000"] = Gemma4UnifiedAudioFeatureExtractor()([sound[:1000]], return_tensors="np")[
        "input_features"
    ][0]
    lengths = np.array([0, 159, 160, 161, 480, 512, 513, 640, 641, 800, 801, 9600, 128_037, 479_999, 480_000])
    count = Gemma4Processor._compute_audio_num_tokens
    processor = type("", (), {"feature_extractor": gemma4, "audio_seq_length": 750})()
    golden |= {"lengths": lengths, "gemma4_tokens": np.array([count(processor, np.zeros(n), 16_000) for n in lengths])}
    np.savez_compressed(HERE / "audio_features.npz", **golden)


if __name__ == "__main__":
    torch.manual_seed(0)
    gemma3n()
    gemma4()
    unified()
    features()
