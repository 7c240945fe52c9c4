"""``alhena tune`` on an imported model with images and sound: adapters beside weights of 32, 16 and 4 bits, and all weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from alhena.align.sft import LoraOptions, shape_for
from alhena.align.sft import Tune as Settings
from alhena.cli.build import Curate
from alhena.cli.tuning import Tune
from alhena.cli.weights import Export, Import
from alhena.content import Content, Text
from alhena.files import content_fingerprint, read_json, write_json
from alhena.model import config, lora, model
from alhena.model.families import open_weights, peft
from alhena.model.families.export_weights import write
from alhena.model.quantized.layout import Int4
from alhena.model.storage.folders import is_adapter, load_model
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from alhena.tokens.examples.loader import Batches
from alhena.tokens.examples.padding import BatchShape, padded_batch
from alhena.tokens.examples.store import Examples
from alhena.train.optimizer import Optimizer
from alhena.tuning import tune_on
from tests.conftest import random_audio, random_image
from tests.tokens.small_gemma import tokenizer_of

GOLDEN = Path(__file__).parents[1] / "model" / "golden" / "open" / "gemma4_unified"
STEPS = 3


def write_published(folder: Path) -> config.Model:
    """A random Gemma 4 Unified in Hugging Face's layout, with a tokenizer."""
    tokenizer = tokenizer_of("gemma4")
    ids = {f"{kind}_token": tokenizer.id(f"<|{kind}|>") for kind in ("image", "audio", "video")}
    c = replace(open_weights.open_folder(GOLDEN).c, vocabulary=tokenizer.size, **ids)
    c = replace(c, decoder=replace(c.decoder, layers=2, global_every=2))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: (0.2 * random.normal(size=s.shape)).astype("f"), model.weights(c))
    folder.mkdir()
    write(folder, params, c)
    (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    write_json(folder / "processor_config.json", {"image_processor": {"max_soft_tokens": 70}})
    return c


def write_documents(folder: Path) -> None:
    """Chats with text alone, an image, a sound, both."""
    folder.mkdir()
    lines = []
    for i in range(12):
        line: dict[str, str] = {"question": f"the lambs {i}?", "answer": f"lamb {i}", "language": "en"}
        if i % 2:
            line["image"] = f"{i}.png"
            (folder / line["image"]).write_bytes(random_image(i).data)
        if i % 3 == 2:
            line["audio"] = f"{i}.flac"
            (folder / line["audio"]).write_bytes(random_audio(i, 0.2).data)
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """``models/`` with the model in float32, bfloat16 and 4 bits, and ``curated``."""
    folder = tmp_path_factory.mktemp("tune")
    write_published(folder / "published")
    for name in ("float32", "bfloat16", "int4"):
        Import(folder / "published", folder / "models" / name, name)()
    write_documents(folder / "documents")
    Curate(folder / "documents", folder / "curated")()
    return folder


@pytest.fixture(scope="module")
def mine(work) -> Path:
    """Adapters beside float32 weights."""
    return tune(work, "float32", "mine", lora=4)


def tune(work: Path, base: str, name: str, **more: object) -> Path:
    """Tunes; the base stays as it is. Returns the new folder."""
    before = content_fingerprint(work / "models" / base)
    settings = {"learning_rate": 0.02, "steps": STEPS, "tokens": 256, "batch_size": 2} | more
    Tune(work / "models" / base, data=work / "curated", name=name, **settings)()
    assert content_fingerprint(work / "models" / base) == before
    return work / "models" / name


def tune_encoded(work: Path, base: str, name: str, options: LoraOptions | None, learning_rate: float) -> Path:
    """Tunes on the examples that the command encoded for ``mine``."""
    models = work / "models"
    shape = shape_for(load_model(models / base)[1], 2, 256)
    t = Settings(STEPS, shape, Optimizer(learning_rate, warmup=1), lora=options)
    tune_on(models / base, work / "tuned" / "mine" / "examples", work / "tuned" / name, models / name, t)
    return models / name


def hidden(folder: Path, work: Path) -> np.ndarray:
    """Final hidden states of a tuned model on its examples, in float32."""
    params, c = load_model(folder)
    examples = Examples(work / "tuned" / "mine" / "examples" / "mine.arrow")
    batch = padded_batch([examples[i] for i in range(4)], 256, 640, 8)
    return np.asarray(jax.jit(model.forward, static_argnums=1)(params, replace(c, compute_dtype="float32"), batch))


def test_adapters_are_trained_answer_and_are_merged_on_export(work, mine):
    facts = read_json(work / "tuned" / "mine" / "stage.json")
    assert (facts["examples"], facts["left_out"], facts["encoded"]["dropped"]) == (12, {}, {})
    assert is_adapter(mine) and not (mine / "weights.safetensors").exists()
    params, c = load_model(mine)
    adapters = peft.read(mine, c)
    assert all(np.abs(update.up).max() > 0 for update in adapters.updates)
    assert isinstance(jax.tree.leaves(params.layers, is_leaf=lora.is_weight)[1], lora.Lora)
    engine = Engine.load(mine)
    (answer,) = engine.generate([[Content("user", (random_image(1), Text("the lambs?")))]], [Sampling(max_tokens=4)])
    assert answer.content.role == "model"
    assert engine.name == "mine"
    # A model of ordinary weights in Hugging Face's layout, with the files beside the weights of the base.
    Export(mine, out=work / "exported")()
    assert (work / "exported" / "processor_config.json").exists()
    Import(work / "exported", work / "models" / "merged")()
    base, adapted, merged = (hidden(work / "models" / name, work) for name in ("float32", "mine", "merged"))
    assert np.abs(adapted - base).max() > 0.1
    np.testing.assert_allclose(merged, adapted, atol=2e-4 * np.abs(adapted).max(), rtol=0)


def test_modalities_are_packed_into_one_sequence(work, mine):
    """Patches of a sequence are padded up to complete pooling windows: a budget need not be a multiple of them."""
    examples = Examples(work / "tuned" / "mine" / "examples" / "mine.arrow")
    batches = Batches({"mine": examples}, {"mine": 1.0}, BatchShape(1, 600, 1300, 16), seed=1)
    batch = next(b for b in islice(batches, 12) if b.patches.any() and b.frame_lengths.any() and b.segments.max() > 1)
    params, c = load_model(work / "models" / "float32")
    assert c.vision and batch.patches.shape[1] % c.vision.pool**2
    whole = replace(
        batch, patches=np.pad(batch.patches, ((0, 0), (0, 5), (0, 0))),
        patch_positions=np.pad(batch.patch_positions, ((0, 0), (0, 5), (0, 0))),
        patch_images=np.pad(batch.patch_images, ((0, 0), (0, 5))),
    )  # fmt: skip
    x, y = (np.asarray(model.embed(params, c, b)) for b in (batch, whole))
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_adapters_beside_four_bits(work, mine):
    tuned = tune_encoded(work, "int4", "quantized", LoraOptions(4, 8.0), 0.02)
    assert read_json(tuned / peft.SETTINGS)["lora_alpha"] == 8.0
    params, _ = load_model(tuned)
    updated = [w for w in jax.tree.leaves(params, is_leaf=lora.is_weight) if isinstance(w, lora.Lora)]
    assert any(isinstance(w.base, Int4) for w in updated)
    Export(tuned, out=work / "exported-quantized")()
    Import(work / "exported-quantized", work / "models" / "merged-quantized")()
    adapted, merged = (hidden(work / "models" / name, work) for name in ("quantized", "merged-quantized"))
    # Merged weights whose base has 16 bits are rounded to 16 bits; the embedding, of 8 bits in the base, has 16 in the merged model,
    # and inputs of quantized weights are rounded to 8.
    difference, size = np.abs(merged - adapted), np.abs(adapted)
    assert difference.mean() < 0.02 * size.mean() and difference.max() < 0.1 * size.max()


def test_all_weights_are_trained_in_float32_and_stored_as_before(work, mine):
    tuned = tune_encoded(work, "bfloat16", "all", None, 0.01)
    (before, c), (after, same) = load_model(work / "models" / "bfloat16"), load_model(tuned)
    assert c == same and c.compute_dtype == "bfloat16"
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before, after)
    assert jax.tree.map(lambda a: a.dtype, before) == jax.tree.map(lambda a: a.dtype, after)
    # The towers are trained with the decoder.
    assert np.mean(jax.tree.leaves(changed)) > 0.8 and any(jax.tree.leaves(changed.vision))


def test_invalid_tuning_of_imported_models_is_refused(work):
    with pytest.raises(
        ValueError, match=r"int4: a model with 4-bit weights cannot be tuned, but adapters beside it can"
    ):
        tune(work, "int4", "x")
    with pytest.raises(ValueError, match="--name 'bfloat16': give the new model a name of its own"):
        tune(work, "bfloat16", "bfloat16", lora=4)
    with pytest.raises(ValueError, match="--lora-alpha needs --lora"):
        tune(work, "bfloat16", "x", lora_alpha=8.0)
    with pytest.raises(ValueError, match=r"LoRA of rank 64: layers\.\S+ is 24 × 32; choose a smaller rank"):
        tune(work, "bfloat16", "x", lora=64)


def test_adapters_without_their_base_are_refused(work, mine, tmp_path):
    with pytest.raises(ValueError, match="mine: adapters cannot be tuned; tune their base"):
        tune(work, "mine", "x", lora=4)
    moved = tmp_path / "mine"
    shutil.copytree(mine, moved)
    with pytest.raises(ValueError, match=r"float32: no such model; .*mine holds adapters for it, put it beside them"):
        load_model(moved)
    Import(work / "published", tmp_path / "float32", "bfloat16")()
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: not the weights for which the adapters of .*mine were"
    ):
        load_model(moved)
    settings = read_json(moved / "model.json")
    write_json(moved / "model.json", settings | {"facts": settings["facts"] | {"adapter_of": "../float32"}})
    with pytest.raises(ValueError, match=r"facts\.adapter_of is '\.\./float32'; it must be the name of a folder"):
        load_model(moved)
