"""Writes the golden files of ``tests/model/test_open_weights.py``: a tiny random model of each family and what the reference computes.

    python -m pip install torch transformers            (for this script only)
    python tests/model/golden/make_open_weights.py      writes open/NAME/ beside it: config.json, model.safetensors, golden.npz
    python tests/model/golden/make_open_weights.py --check FOLDER NAME
        opens a folder that Alhena exported from open/NAME and compares its logits with those of golden.npz

``published.json`` is config.json in the form of the published folders. golden.npz has, for each CASE: ``CASE/tokens`` [L], media,
``embedded`` [L, D] (embeddings with soft tokens), ``logits`` [L, V/4] (each fourth column), ``greedy`` [24] (argmax over text ids,
every step a full forward pass without a cache).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import open_models as models
import torch
import transformers as hf
from open_models import GLOBAL, LOCAL
from open_prompts import Case, cases

HERE = Path(__file__).parent / "open"
STEPS = 24
# Smallest difference of the two largest logits at a greedy step, relative to the largest: float32 noise is 2e-5.
MARGIN = 1e-3


# Largest error of a float32 logit, relative to the largest: the tests' bound is 1e-4.
NOISE = 2e-5


class UnclearAnswerError(Exception):
    """The greedy answer is not certain or always the same token, or float32 is not precise enough: another seed is needed."""


# ── inputs of the reference ──────────────────────────────────────────────────────────────────────────────────────────


def patches(images: list[np.ndarray], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [images, P, side²·3] in rows, padded, and their (x, y) positions, -1 where padded."""
    values, positions = [], []
    for pixels in images:
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
        tiles = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        y, x = np.divmod(np.arange(rows * columns), columns)
        values.append(torch.from_numpy(tiles / np.float32(255)))
        positions.append(torch.from_numpy(np.stack([x, y], -1)))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(values, batch_first=True), pad(positions, batch_first=True, padding_value=-1)


def sounds(case: Case, padded: int) -> dict[str, torch.Tensor]:
    """Features of all sounds, padded to the longest of them and to ``padded``, and which are valid."""
    if not case.sounds:
        return {}
    time = max(padded, *(len(sound) for sound in case.sounds))
    values = np.stack([np.pad(sound, ((0, time - len(sound)), (0, 0))) for sound in case.sounds])
    valid = np.arange(time) < np.array([len(sound) for sound in case.sounds])[:, None]
    return {"input_features": torch.from_numpy(values), "input_features_mask": torch.from_numpy(valid)}


def media(model: torch.nn.Module, case: Case) -> dict[str, torch.Tensor]:
    """Arguments of ``forward`` for the media of a case."""
    kind = model.config.model_type
    out = sounds(case, 64 if kind == "gemma4" else 0)
    if kind == "gemma3" and case.images:
        pixels = np.stack(case.images).transpose(0, 3, 1, 2) / np.float32(255)
        out["pixel_values"] = torch.from_numpy((pixels - np.float32(0.5)) / np.float32(0.5))
        return out
    c = getattr(model.config, "vision_config", None)
    side = c.patch_size * (c.pooling_kernel_size if "unified" in kind else 1) if kind.startswith("gemma4") and c else 0
    if case.images:
        out["pixel_values"], out["image_position_ids"] = patches(case.images, side)
    if case.frames:
        out["pixel_values_videos"], out["video_position_ids"] = patches(case.frames, side)
        out["num_frames_per_video"] = torch.tensor([len(case.frames)])
    return out


def types(tokens: torch.Tensor) -> torch.Tensor:
    """1 at placeholders of images, 2 of video, 3 of sound."""
    kinds = ((models.IMAGE, 1), (models.VIDEO, 2), (models.AUDIO, 3))
    return sum(((tokens == token).long() * kind for token, kind in kinds), torch.zeros_like(tokens))


def masks(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, object]:
    """Arguments that make the image blocks; for the Unified model the masks themselves (its plain forward pass has an error)."""
    kind = model.config.model_type
    if kind == "gemma3":
        return {"token_type_ids": types(tokens)}
    if kind == "gemma4":
        return {"mm_token_type_ids": types(tokens)}
    if kind != "gemma4_unified":
        return {}
    made = type(model).create_masks_for_generate(
        config=model.config, inputs_embeds=torch.zeros(*tokens.shape, 1), attention_mask=None, cache=None,
        position_ids=torch.arange(tokens.shape[1])[None], mm_token_type_ids=types(tokens),
    )  # fmt: skip
    return {"attention_mask": made}


# ── what the reference computes ──────────────────────────────────────────────────────────────────────────────────────


def forward(model: torch.nn.Module, tokens: torch.Tensor, arguments: dict) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings with soft tokens [L, D] and logits [L, V]."""
    seen: list[torch.Tensor] = []
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    if decoder is model.model:
        seen.append(decoder.embed_tokens(tokens))
    hook = decoder.register_forward_pre_hook(
        lambda _, __, options: seen.append(options.get("inputs_embeds")), with_kwargs=True
    )
    out = model(tokens, use_cache=False, **arguments, **masks(model, tokens))
    hook.remove()
    return seen[0][0].float().numpy(), out.logits[0].float().numpy()


def greedy(model: torch.nn.Module, tokens: torch.Tensor, arguments: dict) -> tuple[list[int], float]:
    """The most probable text ids, each by a full forward pass, and the smallest margin."""
    out, margin = [], np.inf
    for _ in range(STEPS):
        logits = forward(model, tokens, arguments)[1][-1]
        second, best = np.sort(logits[: models.TEXT])[-2:]
        margin = min(margin, (best - second) / np.abs(logits).max())
        out.append(int(logits[: models.TEXT].argmax()))
        tokens = torch.cat([tokens, torch.tensor([[out[-1]]])], 1)
    return out, margin


def noise(model: torch.nn.Module, tokens: torch.Tensor, arguments: dict, logits: np.ndarray) -> float:
    """Largest error of float32 logits, relative to the largest, by the same in float64."""
    experts = getattr(model.config.get_text_config(), "enable_moe_block", False)
    if experts or (model.config.model_type == "gemma4" and "input_features" in arguments):
        # The reference has no float64 of its experts and of Gemma 4's audio encoder.
        return 0.0
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    model.double()
    exact = forward(model, tokens, doubled)[1]
    model.float()
    return float(np.abs(exact - logits).max() / np.abs(exact).max())


def values(model: torch.nn.Module, case: Case) -> dict[str, np.ndarray]:
    settings = model.config.get_text_config()
    configured = settings.sliding_window
    settings.sliding_window = case.window or configured
    tokens, arguments = torch.tensor([case.tokens]), media(model, case)
    embedded, logits = forward(model, tokens, arguments)
    error = noise(model, tokens, arguments, logits)
    answer, margin = greedy(model, tokens, arguments)
    settings.sliding_window = configured
    largest = np.abs(logits).max()
    print(f"  {len(case.tokens)} tokens, largest logit {largest:.2f}, noise {error:.1e}, margin {margin:.1e}, {answer}")
    if error > NOISE or margin < MARGIN or len(set(answer)) < 8:
        raise UnclearAnswerError
    out = {"tokens": np.array(case.tokens), "embedded": embedded, "logits": logits[:, ::4], "greedy": np.array(answer)}
    out |= {"largest": largest, "window": np.array(case.window or configured)}
    out |= {f"image_{i}": array for i, array in enumerate(case.images)}
    out |= {f"frame_{i}": array for i, array in enumerate(case.frames)}
    return out | {f"sound_{i}": array for i, array in enumerate(case.sounds)}


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def published(settings: dict) -> dict:
    """config.json in the form of the published folders: fields for all layers instead of a table, patterns instead of lists."""
    out = json.loads(json.dumps(settings))
    text = out.get("text_config", out)
    if text["model_type"].startswith("gemma4"):
        first = next(iter(text.pop("per_layer_config").values()))
        text["global_head_dim"] = first["head_dim"]
        text["num_global_key_value_heads"] = first.get("num_key_value_heads")
    else:
        rope = text.pop("rope_parameters")
        text["rope_theta"], text["rope_local_base_freq"] = rope[GLOBAL]["rope_theta"], rope[LOCAL]["rope_theta"]
        text["rope_scaling"] = None
        if rope[GLOBAL]["rope_type"] == "linear":
            text["rope_scaling"] = {"rope_type": "linear", "factor": rope[GLOBAL]["factor"]}
        if text["model_type"].startswith("gemma3_"):
            text.pop("layer_types")
            text.pop("_sliding_window_pattern", None)
            text["sliding_window_pattern"] = 6
    if rotary := out.get("vision_config", {}).get("rope_parameters"):
        rotary["rope_type"] = "default"
    out["torch_dtype"] = out.pop("dtype")
    return out


def check_published(folder: Path) -> None:
    """Raises when the reference does not read the same settings from both forms."""
    plain = json.loads((folder / "published.json").read_text())
    a = hf.AutoConfig.from_pretrained(folder).to_dict()
    b = type(hf.AutoConfig.from_pretrained(folder)).from_dict(plain).to_dict()
    texts = [d.get("text_config", d) for d in (a, b)]
    ignored = ("_name_or_path", "sliding_window_pattern")
    ours, theirs = (json.dumps({k: v for k, v in t.items() if k not in ignored}, sort_keys=True) for t in texts)
    if ours != theirs:
        raise SystemExit(f"{folder}: the published form is read differently\n{ours}\n{theirs}")


def unused_tensors(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Keys and values of the layers that share them: published folders contain them, nothing uses them."""
    settings = model.config.get_text_config()
    first = settings.num_hidden_layers - (getattr(settings, "num_kv_shared_layers", 0) or 0)
    out = {}
    prefix = "model.language_model" if hasattr(model.model, "language_model") else "model"
    for i in range(first, settings.num_hidden_layers):
        H = settings.per_layer_config[i].head_dim if settings.model_type.startswith("gemma4") else settings.head_dim
        for name in ("k_proj", "v_proj", "k_norm"):
            shape = (H,) if name == "k_norm" else (settings.num_key_value_heads * H, settings.hidden_size)
            out[f"{prefix}.layers.{i}.self_attn.{name}.weight"] = torch.randn(shape, generator=generator)
    return out


def make(name: str, seed: int) -> None:
    print(name)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = models.BUILDERS[name]().eval()
    model.set_attn_implementation("eager")
    models.randomize(model, generator)
    if name == "gemma3_text":
        # As stored: rounded to bfloat16, the factor of the embeddings too.
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.bfloat16())
        scale = model.model.embed_tokens.embed_scale
        scale.copy_(scale.bfloat16())
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        found = {f"{case}/{k}": v for case, c in cases(name, rng).items() for k, v in values(model, c).items()}
    if name == "gemma3_text":
        model.bfloat16()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("lm_head")}
    folder = HERE / name
    model.save_pretrained(folder, state_dict=tensors | unused_tensors(model, generator))
    ends = {
        "bos_token_id": models.BOS,
        "eos_token_id": [1, 5],
        "pad_token_id": 0,
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "published.json").write_text(json.dumps(published(stored), indent=2) + "\n")
    np.savez_compressed(folder / "golden.npz", **found)
    if name != "gemma3n_audio":
        check_published(folder)
    print(f"  {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


def check(folder: Path, name: str) -> None:
    """Compares an exported folder, opened by the reference, with the golden values of the folder that it was imported from."""
    build = (
        hf.AutoModelForMultimodalLM
        if hasattr(hf.AutoConfig.from_pretrained(folder), "text_config")
        else hf.AutoModelForCausalLM
    )
    model = build.from_pretrained(folder, dtype=torch.float32).eval()
    model.set_attn_implementation("eager")
    if hf.AutoConfig.from_pretrained(folder).dtype == torch.bfloat16:
        scale = model.get_input_embeddings().embed_scale
        scale.copy_(scale.bfloat16())
    with np.load(HERE / name / "golden.npz") as stored:
        golden = dict(stored)
    settings = model.config.get_text_config()
    for case in sorted({key.split("/")[0] for key in golden}):
        media_of = {
            k: [golden[key] for key in sorted(golden) if key.startswith(f"{case}/{k}_")]
            for k in ("image", "frame", "sound")
        }
        if any(media_of.values()) and not hasattr(model.config, "text_config"):
            print(f"{name} {case}: the exported folder is a text model")
            continue
        example = Case(golden[f"{case}/tokens"].tolist(), media_of["image"], media_of["frame"], media_of["sound"])
        settings.sliding_window = int(golden[f"{case}/window"])
        with torch.no_grad():
            logits = forward(model, torch.tensor([example.tokens]), media(model, example))[1][:, ::4]
        error = np.abs(logits - golden[f"{case}/logits"]).max() / golden[f"{case}/largest"]
        print(f"{name} {case}: largest difference {error:.1e} of the largest logit")
        if error > 1e-4:
            raise SystemExit("the exported folder computes something else")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--check"]:
        check(Path(sys.argv[2]), sys.argv[3])
        return
    for name in sys.argv[1:] or models.BUILDERS:
        for seed in range(100):
            try:
                make(name, seed)
                break
            except UnclearAnswerError:
                continue


if __name__ == "__main__":
    main()
