"""Distillation in the trainer: resumed = uninterrupted, cached = computed, all tokens sampled = the complete distribution; refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena import pipeline
from alhena.cli.build import Curate
from alhena.cli.tuning import Tune
from alhena.cli.weights import Import
from alhena.compress.distill import (
    Distill,
    Distillation,
    Teacher,
    check_same_batches,
    check_same_tokens,
    tokenizers_of,
)
from alhena.model import config, model
from alhena.tokens.examples.loader import BatchShape
from alhena.train.chunk_loss import Mix
from alhena.train.mixture import Mixture, Phase, Training, open_examples
from alhena.train.monitoring.metrics import FILE, read_metrics
from alhena.train.monitoring.replay import replay
from alhena.train.monitoring.validation import validate
from alhena.train.objective import TaughtBatch
from alhena.train.optimizer import Optimizer
from alhena.train.step import Constants, Taught, accumulated_gradient, loss_and_gradient
from alhena.train.trainer import Folders, Hooks, train
from recipes import starter, starter_distilled
from tests.align.test_tune_imported import write_documents, write_published

TRAINING = Training(
    (Phase(4, {"a": 1.0, "b": 1.0}),), BatchShape(2, 128, 96, 4), Optimizer(warmup=1), save_every=2, log_every=2
)


@pytest.fixture(scope="module")
def teacher(tiny) -> Teacher:
    """Another width than the student's, and random."""
    c = tiny[1]
    c = replace(
        c, decoder=config.Decoder(width=48, layers=1, heads=2, head_dim=16, hidden=64, final_logit_softcap=20.0)
    )
    return Teacher(model.init(jax.random.key(7), c), c)


def objective(teacher: Teacher, student: config.Model, folder: Path, **settings) -> Distillation:
    """``folder`` stands in for the teacher's files, of which only the fingerprint counts here."""
    (folder / "teacher").mkdir(exist_ok=True)
    (folder / "teacher" / "weights").write_bytes(b"of the teacher")
    return Distillation(teacher, Distill(folder / "teacher", **settings), student)


def copy(params: model.Params) -> model.Params:
    return jax.tree.map(jnp.copy, params)


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_resumed_cached_and_replayed_trainings_equal_the_uninterrupted_one(teacher, tiny, data, tmp_path):
    """Of sampled tokens; a recipe with the complete distribution is replayed below."""
    params, c = tiny
    run = lambda name, hooks=None, **how: train(  # noqa: E731
        Taught(copy(params), objective(teacher, c, tmp_path, tokens=8, **how)), c, TRAINING, Folders(data, tmp_path / name), name, hooks
    )  # fmt: skip
    uninterrupted = run("uninterrupted")
    cache = {"cache": tmp_path / "cache"}
    run("stopped", Hooks(stop_after=3), **cache)
    equal(run("stopped", **cache), uninterrupted)
    files = [*(tmp_path / "cache").rglob("*.safetensors")]
    assert len(files) == TRAINING.steps
    # Now every output is read.
    equal(run("again", **cache), uninterrupted)
    replayed = replay(
        Taught(copy(params), objective(teacher, c, tmp_path, tokens=8)), c, TRAINING, data, tmp_path / "again", 3
    )
    assert replayed.difference is None
    with pytest.raises(AssertionError):
        equal(train(copy(params), c, TRAINING, Folders(data, tmp_path / "plain"), "plain"), uninterrupted)
    with pytest.raises(ValueError, match="of another training"):
        run("again", mix=Mix(0.2, 0.8))


def test_a_teacher_s_loss_is_logged_and_sources_that_it_does_not_know_are_named(teacher, tiny, data, tmp_path, capsys):
    """The random teacher knows nothing; the student overtakes it on both sources."""
    params, c = tiny
    how = objective(teacher, c, tmp_path, mix=Mix(0.9, 0.1))
    t = replace(
        TRAINING, phases=(Phase(40, {"a": 1.0, "b": 1.0}),), optimizer=Optimizer(1e-2, warmup=1), evaluate_every=20
    )
    train(Taught(copy(params), how), c, t, Folders(data, tmp_path / "run", data), "taught")
    lines = [line for line in read_metrics(tmp_path / "run" / FILE) if line["kind"] != "train"]
    assert [(line["kind"], line["step"]) for line in lines] == [("validation", 20), ("teacher", 20), ("validation", 40)]
    own = validate(teacher.params, teacher.c, open_examples(data), t.shape)
    assert lines[1]["loss_by_modality"] == pytest.approx(own, abs=1e-3)
    shown = " ".join(capsys.readouterr().out.split())
    for name in "ab":
        assert f"step 40, source '{name}': the teacher's loss is {own[name]:.2f}" in shown


def test_a_cache_stops_at_its_limit_and_a_foreign_file_is_refused(teacher, tiny, data, tmp_path):
    batch = Mixture(open_examples(data), TRAINING).next()
    full = objective(teacher, tiny[1], tmp_path, cache=tmp_path / "cache", cache_bytes=100)
    full.constants()
    full.outputs(batch, batch)
    assert not [*(tmp_path / "cache").rglob("*.safetensors")]
    distillation = objective(teacher, tiny[1], tmp_path, cache=tmp_path / "cache")
    distillation.constants()
    distillation.outputs(batch, batch)
    with pytest.raises(ValueError, match=r"safetensors: hidden has shape .*; delete the file"):
        distillation._cache.read(distillation._cache.key(batch), batch.weights[:1])


def test_all_tokens_are_the_complete_distribution_and_parts_of_a_batch_add_up(teacher, tiny, data, tmp_path):
    params, c = tiny
    batch = jax.tree.map(jnp.asarray, Mixture(open_examples(data), TRAINING).next())
    gradients = []
    for tokens in (None, c.vocabulary):
        distillation = objective(teacher, c, tmp_path, tokens=tokens, mix=Mix(0.3, 0.7, 1.5))
        frozen = Constants(distillation.constants(), None)
        taught = TaughtBatch(batch, distillation.outputs(batch, batch), distillation.loss)
        gradients.append(jax.jit(loss_and_gradient, static_argnums=1)(params, c, taught, frozen))
    gradients.append(jax.jit(accumulated_gradient, static_argnums=(1, 3))(params, c, taught, 2, frozen))
    for other in gradients[1:]:
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradients[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(b).max())))


def test_sampled_tokens_follow_the_distribution_and_are_renormalized(teacher, tiny, data, tmp_path):
    """Of two draws without replacement from the same position, repeated in every position of a batch of equal tokens."""
    c, batch = tiny[1], Mixture(open_examples(data), TRAINING).next()
    same = jax.tree.map(lambda a: jnp.zeros_like(a[:, :0]) if a.ndim > 2 else jnp.zeros((64, 128), a.dtype), batch)
    same = replace(
        same,
        segments=jnp.tile(jnp.arange(1, 129), (64, 1)),
        patch_images=jnp.zeros((64, 0), int),
        frame_lengths=jnp.zeros((64, 0), int),
    )
    same = replace(
        same,
        **{
            n: jnp.zeros((64, *getattr(same, n).shape[1:]), getattr(same, n).dtype)
            for n in ("patches", "patch_positions", "frames")
        },
    )
    distillation = objective(teacher, c, tmp_path, tokens=1)
    distillation.constants()
    hidden = jax.jit(model.forward, static_argnums=1)(teacher.params, teacher.c, same)
    p = jax.nn.softmax(model.logits(teacher.params, teacher.c, hidden[0, 0]))
    drawn = np.bincount(np.asarray(distillation.outputs(same, same).ids).ravel(), minlength=c.vocabulary) / 8192
    assert 0.5 * np.abs(drawn - p).sum() < 0.16
    two = objective(teacher, c, tmp_path, tokens=2)
    two.constants()
    out = two.outputs(same, same)
    assert bool((out.ids[..., 0] != out.ids[..., 1]).all())
    expected = p[out.ids] / p[out.ids].sum(-1, keepdims=True)
    np.testing.assert_allclose(out.probabilities, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocabulary": 2000}, "the teacher's vocabulary is 2000, the student's"),
        ({"image_token": 0}, "the teacher's image_token is 0"),
        ({"code_factors": None}, "the teacher's code_factors is None"),
        (
            {"audio": None},
            "the teacher's audio.frame_values is None, the student's 128: they cannot read the same batches",
        ),
    ],
)
def test_a_teacher_that_reads_other_batches_is_refused(tiny, changed, message):
    with pytest.raises(ValueError, match=message):
        check_same_batches(replace(tiny[1], **changed), tiny[1])
    check_same_batches(tiny[1], replace(tiny[1], vision=None))


def test_a_recipe_with_a_teacher_takes_its_tokenizers_and_is_trained(smoke, tmp_path):
    """The student of the smoke recipe, taught by the smoke run's own base model."""
    teacher = smoke / "models" / "base"
    recipe = starter_distilled.distilled(starter.smoke(), teacher)
    recipe = replace(recipe, pretrain=replace(recipe.pretrain, phases=(Phase(2, starter.TASKS),), evaluate_every=9))
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "curated").symlink_to(smoke / "curated", target_is_directory=True)
    pipeline.make_tokens(recipe, tmp_path)
    for name in ("text.model", "image_tokenizer.safetensors"):
        assert (tmp_path / "tokens" / name).read_bytes() == (teacher / name).read_bytes()
    pipeline.make_base(recipe, tmp_path)
    assert pipeline.replay_base(recipe, tmp_path, 2).difference is None
    other = replace(recipe, image_tokenizer=replace(recipe.image_tokenizer, color=(4, 4)))
    with pytest.raises(ValueError, match=r"Recipe.image_tokenizer is .*color=\(4, 4\)"):
        pipeline.make_tokens(other, tmp_path / "other")
    (tmp_path / "tokens" / "text.model").write_bytes(b"another")
    with pytest.raises(
        ValueError, match=r"text.model: not the file in .*tokens; a student needs the tokenizers of its"
    ):
        check_same_tokens(teacher, tmp_path / "tokens")


def test_an_imported_model_is_tuned_with_an_imported_teacher_beside_adapters(tmp_path):
    """The teacher has four bits; the stage depends on it."""
    write_published(tmp_path / "published")
    for name in ("float32", "int4"):
        Import(tmp_path / "published", tmp_path / "models" / name, name)()
    write_documents(tmp_path / "documents")
    Curate(tmp_path / "documents", tmp_path / "curated")()
    command = Tune(
        tmp_path / "models" / "float32", data=tmp_path / "curated", name="taught", steps=2, lora=2, tokens=96
    )
    command = replace(command, batch_size=1, teacher=tmp_path / "models" / "int4", soft=0.9, temperature=2.0)
    command()
    weights = tmp_path / "models" / "taught" / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns
    command()
    assert weights.stat().st_mtime_ns == written
    replace(command, soft=0.0)()
    assert (tmp_path / "models" / "taught.old-1").exists()
    with pytest.raises(ValueError, match="--soft and --temperature need --teacher"):
        replace(command, teacher=None)()
    with pytest.raises(ValueError, match="an imported model; it can teach one with the same tokenizer"):
        tokenizers_of(tmp_path / "models" / "int4")
