"""Writes the golden files of ``tests/model/test_vision_encoders.py`` and ``tests/tokens/test_images.py``: tiny random image encoders of the
reference implementation and their outputs, and what its processors make of images.

python -m pip install torch transformers       (for this script only)
python tests/model/golden/make_vision.py       writes gemma3_vision/, gemma4_vision/, gemma4_clipped/, unified_vision/ and images.npz beside it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma4TextConfig, Gemma4VisionConfig, SiglipVisionModel
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder, Gemma4VisionModel
from transformers.models.gemma4_unified.configuration_gemma4_unified import (
    Gemma4UnifiedTextConfig,
    Gemma4UnifiedVisionConfig,
)
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedVisionEmbedder

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
WIDTH, PATCH, POOL = 16, 4, 3
# Rows and columns of soft tokens of the images of Gemma 4.
GRIDS = (2, 3), (3, 1)
SIZES = (480, 640), (48, 48), (37, 1000), (1000, 3), (1, 1), (1300, 900), (767, 769), (3, 20_000)
BUDGETS = (70, 140, 280, 560, 1120)


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Random parameters and buffers: a scale of one, a bias of zero or an infinite bound would hide a missing one."""
    state = {}
    for name, values in model.state_dict().items():
        is_scale = "norm" in name or "ln" in name or name.endswith("std_scale")
        around_one = is_scale and name.endswith(("weight", "std_scale")) and "mm_soft_emb_norm" not in name
        noise = torch.from_numpy(RNG.normal(0, 0.2, values.shape).astype(np.float32)).reshape(values.shape)
        state[name] = noise + 1 if around_one else noise
        if name.endswith(("_min", "_max")):
            sign = -1 if name.endswith("_min") else 1
            state[name] = torch.tensor(np.float32(sign * RNG.uniform(0.3, 1.2)))
    model.load_state_dict(state)
    return model.eval()


def save(folder: str, settings: dict[str, object], models: Mapping[str, torch.nn.Module], **golden: np.ndarray) -> None:
    path = HERE / folder
    path.mkdir(exist_ok=True)
    tensors = {f"{prefix}{name}": t for prefix, model in models.items() for name, t in model.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    np.savez_compressed(path / "golden.npz", **golden)


def gemma3() -> None:
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "image_size": 32, "patch_size": 4, "vision_use_head": False,
    }  # fmt: skip
    text = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    c = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    tower, projector = scrambled(SiglipVisionModel(c.vision_config)), scrambled(Gemma3MultiModalProjector(c))
    pixels = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
        tokens = projector(tower(x).last_hidden_state)
    models = {"vision_tower.vision_model.": tower, "multi_modal_projector.": projector}
    save(
        "gemma3_vision",
        {"vision_config": vision, "mm_tokens_per_image": 4},
        models,
        pixels=pixels,
        tokens=tokens.numpy(),
    )


def patches(pixels: np.ndarray, side: int, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches in rows and their (x, y), padded as the reference's processor does."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    values = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    padding = (0, padded - rows * columns), (0, 0)
    positions = np.pad(np.stack([x, y], -1).reshape(-1, 2), padding, constant_values=-1)
    return torch.from_numpy(np.pad(values / np.float32(255), padding)), torch.from_numpy(positions)


def images() -> list[np.ndarray]:
    side = PATCH * POOL
    return [RNG.integers(0, 256, (rows * side, columns * side, 3), np.uint8) for rows, columns in GRIDS]


def gemma4(folder: str, clipped: bool) -> None:
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": PATCH, "pooling_kernel_size": POOL, "position_embedding_size": 12,
        "use_clipped_linears": clipped, "standardize": not clipped,
    }  # fmt: skip
    c = Gemma4VisionConfig(**vision)
    tower = scrambled(Gemma4VisionModel(c))
    embedder = scrambled(Gemma4MultimodalEmbedder(c, Gemma4TextConfig(hidden_size=WIDTH)))
    pixels = images()
    inputs = [torch.stack(x) for x in zip(*(patches(image, PATCH, 54) for image in pixels), strict=True)]
    with torch.no_grad():
        tokens = embedder(tower(*inputs).last_hidden_state).numpy()
    first = len(pixels[0]) * len(pixels[0][0]) // (PATCH * POOL) ** 2
    models = {"model.vision_tower.": tower, "model.embed_vision.": embedder}
    golden = {"pixels_0": pixels[0], "pixels_1": pixels[1], "tokens_0": tokens[:first], "tokens_1": tokens[first:]}
    rope = {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}
    save(folder, {"vision_config": {**vision, **rope}}, models, **golden)


def unified() -> None:
    vision = {
        "model_type": "gemma4_unified_vision", "patch_size": PATCH, "pooling_kernel_size": POOL, "mm_embed_dim": 24,
        "mm_posemb_size": 4, "output_proj_dims": 24,
    }  # fmt: skip
    embedder = scrambled(
        Gemma4UnifiedVisionEmbedder(Gemma4UnifiedVisionConfig(**vision), Gemma4UnifiedTextConfig(hidden_size=WIDTH))
    )
    pixels = images()
    inputs = [torch.stack(x) for x in zip(*(patches(image, PATCH * POOL, 6) for image in pixels), strict=True)]
    with torch.no_grad():
        tokens = embedder(*inputs).pooler_output.numpy()
    published = torch.nn.Module()
    published.embedding_projection = embedder.multimodal_embedder.embedding_projection
    del embedder.multimodal_embedder
    golden = {"pixels_0": pixels[0], "pixels_1": pixels[1], "tokens_0": tokens[0], "tokens_1": tokens[1, :3]}
    models = {"model.vision_embedder.": embedder, "model.embed_vision.": published}
    save("unified_vision", {"vision_config": vision}, models, **golden)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth and sharp parts, without a file: the test computes it again."""
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((x * (channel + 3) + y * 5 + x * y // 7 * (channel == 1)) % 256).astype(np.uint8)


def preprocessing() -> None:
    """Sizes of all budgets, and the uint8 pixels of every 37th patch of a picture that is enlarged and of one that is reduced."""
    sizes = [[get_aspect_ratio_preserving_size(*size, 16, 9 * budget, 3) for size in SIZES] for budget in BUDGETS]
    golden = {"sizes": np.array(SIZES), "budgets": np.array(BUDGETS), "resized": np.array(sizes)}
    for name, shape in (("small", (60, 90)), ("large", (700, 1000))):
        pixels = picture(*shape)
        out = Gemma4ImageProcessorPil(max_soft_tokens=70)(pixels, input_data_format="channels_last")
        count = 9 * int(out["num_soft_tokens_per_image"][0])
        golden[f"gemma4_{name}"] = np.round(out["pixel_values"][0][:count:37] * 255).astype(np.uint8)
        golden[f"positions_{name}"] = np.asarray(out["image_position_ids"][0][:count:37])
        square = {"height": 56, "width": 56}
        values = Gemma3ImageProcessorPil(size=square)(pixels, input_data_format="channels_last")["pixel_values"][0]
        golden[f"gemma3_{name}"] = np.round((np.asarray(values).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    np.savez_compressed(HERE / "images.npz", **golden)


if __name__ == "__main__":
    gemma3()
    gemma4("gemma4_vision", clipped=False)
    gemma4("gemma4_clipped", clipped=True)
    unified()
    preprocessing()
