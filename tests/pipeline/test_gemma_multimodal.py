"""An imported text model that is extended: old logits are unchanged, old rows are never trained, the result generates images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena import pipeline
from alhena.content import Content, Document, Image, Text
from alhena.files import check_sealed, seal_folder
from alhena.model import config, image_tokenizer, model
from alhena.model.families.open_weights import open_folder
from alhena.model.sharding import Mesh
from alhena.model.storage import base_model
from alhena.model.storage.weights import load_model, read_config, save_model
from alhena.model.transformer.embedding import Extended, lookup
from alhena.recipe import Recipe
from alhena.serve.decoding import buckets
from alhena.serve.decoding.sampling import image_grammar
from alhena.serve.decoding.sampling.constraints import Constraints
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from alhena.tokens import extension
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import encoder_files, load_encoder
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import write_examples
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.loss import LossOptions, weighted_loss
from alhena.train.mixture import Phase
from alhena.train.trainer import Folders, train
from alhena.tuning import write_model_folder
from recipes import gemma_multimodal
from tests.conftest import random_audio, random_image
from tests.tokens.small_gemma import settings_of, tokenizer_of

GOLDEN = Path(__file__).parents[1] / "model" / "golden" / "open" / "gemma3_text"
SHAPE = BatchShape(batch_size=2, tokens=256, patches=256, chunks=2)
# Ids of the base without a token.
UNUSED = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of an imported text model with random weights, in bfloat16."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "gemma", tokenizer_of("gemma3")
    c = replace(open_folder(GOLDEN).c, vocabulary=tokenizer.size + UNUSED)
    # Fewer layers compile faster.
    c = replace(c, decoder=replace(c.decoder, layers=2, global_every=2))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: (w + 0.1 * rng.normal(size=w.shape)).astype(jnp.bfloat16), model.init(jax.random.key(0), c)
    )
    GemmaEncoder.create(tokenizer, settings_of("gemma3"), c).save(folder)
    save_model(folder, params, c, {"imported": "gemma3_text"})
    seal_folder(folder, extension.MODEL_FILES)
    return folder


@dataclass(frozen=True)
class Run:
    """A run folder with encoded examples of every kind, and the model before its first step."""

    recipe: Recipe
    folder: Path
    encoder: Encoder
    params: model.Params
    c: config.Model


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Run:
    recipe, folder = gemma_multimodal.smoke(base), tmp_path_factory.mktemp("run")
    images, tokens = recipe.image_tokenizer, folder / "tokens"
    image_tokenizer.save(tokens, image_tokenizer.init(jax.random.key(1), images), images)
    text = extension.base_tokenizer(base, recipe.text_vocabulary_size)
    vocabulary = Vocabulary(recipe.text_vocabulary_size, images.num_codes)
    Encoder(text, vocabulary, recipe.vision, recipe.audio, recipe.budget).save(tokens)
    encoder = Encoder.load(tokens, lambda images: [np.arange(16).reshape(4, 4) for _ in images])
    ask, answer = Text("What colour is the circle?"), Content("model", (Text("the lamb"),))
    documents = [
        Document((Content("user", (random_image(1), ask)), answer), "0", "mixed"),
        Document((Content("user", (random_audio(2),)), answer), "1", "mixed"),
        Document((Content("user", (ask,)), Content("model", (random_image(3, 32, 32),))), "2", "mixed"),
    ]
    examples = [e for d in documents * 2 for e in encoder.encode(d, 256)]
    write_examples(tokens / "train" / "mixed.arrow", examples, {"patches": (192,), "frames": (128, 128)})
    params, c = pipeline._initial_model(recipe, folder)
    return Run(recipe, folder, encoder, params, c)


@pytest.fixture(scope="module")
def trained(run) -> Path:
    """The model folder after two steps."""
    training = replace(run.recipe.pretrain, phases=(Phase(2, {"mixed": 1.0}),), shape=SHAPE)
    # Training consumes its params.
    params = jax.tree.map(jnp.copy, run.params)
    params = train(params, run.c, training, Folders(run.folder / "tokens" / "train", run.folder / "pretrain"), "test")
    out = run.folder / "models" / "base"
    write_model_folder(params, run.c, run.folder / "tokens", out, {"name": "base"})
    return out


def test_logits_of_the_old_ids_are_unchanged_before_training(base, run):
    old, old_c = load_model(base)
    gemma = load_encoder(base)
    example = gemma.encode(Document((Content("document", (Text("the lambs of 漢字"),)),), "0", "x"), 64)
    batch = buckets.padded(example)
    before = model.logits(old, old_c, model.forward(old, old_c, batch))
    after = model.logits(run.params, run.c, model.forward(run.params, run.c, batch))
    assert after.shape[-1] == run.encoder.vocabulary.size
    np.testing.assert_allclose(after[..., : old_c.vocabulary], before, atol=1e-5 * float(jnp.abs(before).max()))


def test_text_keeps_its_ids_and_new_rows_have_the_size_of_old_ones(base, run):
    encoder, gemma = load_encoder(run.folder / "tokens"), load_encoder(base)
    assert isinstance(encoder, Encoder)
    for text in ("the lambs\n\n\t漢字 <start_of_turn>", " <bos>", ""):
        assert encoder.tokenizer.encode(text) == gemma.tokenizer.encode(text)
    assert encoder.tokenizer.controls == gemma.tokenizer.controls
    assert encoder.vocabulary.num_text == gemma.tokenizer.size + UNUSED == run.c.frozen_rows
    old, new = np.split(np.asarray(run.params.embedding), [run.c.frozen_rows])
    controls, factors = np.split(new, [len(new) - sum(run.c.code_factors)])
    size = np.mean(old**2)
    np.testing.assert_allclose([np.mean(controls**2), 2 * np.mean(factors**2)], [size, size], rtol=0.1)


def test_gradients_are_those_of_the_complete_embedding_without_the_old_rows():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(9, 6)).astype(np.float32), rng.normal(size=(20, 6)).astype(np.float32)
    targets, weights, options = np.arange(9) * 2, np.arange(9) % 3 + 0.0, LossOptions("float32", 3.0, (4, 2))

    def loss(hidden, rows, frozen):
        embedding = rows if frozen is None else Extended(frozen, rows)
        inputs = hidden + lookup(embedding, targets, (4, 2))
        return weighted_loss(inputs, rows, targets, weights.astype(np.float32), options, frozen)[0]

    expected = jax.value_and_grad(loss, (0, 1))(hidden, table, None)
    # The last rows of the frozen table have no effect.
    part = jax.value_and_grad(loss, (0, 1))(
        hidden, table[12:], np.concatenate([table[:12], np.ones((8, 6), np.float32)])
    )
    np.testing.assert_allclose(part[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(loss(hidden, table[12:], table), expected[0], rtol=1e-6)
    np.testing.assert_allclose(part[1][0], expected[1][0], atol=1e-5)
    np.testing.assert_allclose(part[1][1], expected[1][1][12:], atol=1e-5)


def test_training_changes_everything_but_the_old_rows(run, trained):
    params, c = load_model(trained)
    assert c == run.c and c.frozen_rows
    (old, new), (old_before, new_before) = (
        np.split(np.asarray(p.embedding), [c.frozen_rows]) for p in (params, run.params)
    )
    np.testing.assert_array_equal(old, old_before)
    codes = len(new) - sum(c.code_factors)
    assert (new[codes:] != new_before[codes:]).any()
    assert (new[:codes] != new_before[:codes]).any()
    for name in ("layers", "vision", "audio", "norm"):
        pairs = zip(jax.tree.leaves(getattr(params, name)), jax.tree.leaves(getattr(run.params, name)), strict=True)
        assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs), name


def test_the_model_folder_generates_images(trained):
    check_sealed(trained)
    assert encoder_files(trained)[0] == "tokenizer.json"
    engine = Engine.load(trained)
    prompt = [Content("user", (random_image(7), random_audio(8), Text("Draw the lamb.")))]
    sampling = Sampling(temperature=1.0, max_tokens=80, image_first=True, aspect=1.0)
    answer = engine.generate([prompt], sampling)[0]
    assert isinstance(answer.content.parts[0], Image)


def test_controls_and_unused_ids_of_the_base_are_never_sampled(run):
    constraints = Constraints.of(run.encoder, run.c)

    allowed = np.asarray(constraints.allowed_tokens(image_grammar.start(1), run.c.vocabulary, 64))[0]
    tokenizer, v = run.encoder.tokenizer, run.encoder.vocabulary
    assert not allowed[[*tokenizer.controls]].any()
    assert not allowed[tokenizer.size : v.num_text].any()
    assert allowed[tokenizer.encode("the lamb")].all() and allowed[[v.end, v.control("<boi_out>")]].all()


def test_stages_depend_on_the_content_of_the_base(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "gemma")
    text, whole = (extension.base_fingerprint(folder, n) for n in (extension.TEXT_FILES, extension.MODEL_FILES))
    params, c = load_model(folder)
    save_model(folder, replace(params, norm=params.norm + 1), c, read_config(folder)[1])
    seal_folder(folder, extension.MODEL_FILES)
    assert extension.base_fingerprint(folder, extension.TEXT_FILES) == text
    assert extension.base_fingerprint(folder, extension.MODEL_FILES) != whole


def test_what_cannot_be_extended_is_refused(base, run, tmp_path):
    with pytest.raises(ValueError, match=r"absent: no such model; import one: alhena import"):
        gemma_multimodal.run(tmp_path / "absent")
    with pytest.raises(ValueError, match="it has vision"):
        save_model(tmp_path, run.params, run.c, {})
        gemma_multimodal.run(tmp_path)
    with pytest.raises(ValueError, match="another decoder or vocabulary"):
        base_model.extended(jax.random.key(0), replace(run.c, frozen_rows=5), base)
    with pytest.raises(ValueError, match="is none of the 40 text ids"):
        extension.base_tokenizer(base, 40)
    training = replace(run.recipe.pretrain, mesh=Mesh(data=1))
    with pytest.raises(ValueError, match=r"Training\.mesh: beside frozen weights"):
        train(run.params, run.c, training, Folders(tmp_path, tmp_path), "test")


def test_a_folder_of_two_tokenizers_is_refused(run, tmp_path):
    shutil.copytree(run.folder / "tokens", tmp_path / "m", ignore=shutil.ignore_patterns("train"))
    (tmp_path / "m" / "text.model").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"text\.model and tokenizer\.json are files of two models"):
        load_encoder(tmp_path / "m")
