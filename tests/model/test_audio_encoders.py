"""Audio encoders equal their reference implementations: tiny random encoders of Gemma 3n, Gemma 4 and Gemma 4 Unified."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from alhena.model import config, model, spec
from alhena.model.encoders import unified_audio, usm
from alhena.model.families.encoders import gemma3n_audio, gemma4_audio
from alhena.model.families.encoders.gemma3n_audio import Embedder
from alhena.model.families.tensor_map import Source, Table, names, read_arrays, tensors
from alhena.model.layers import run_layers
from alhena.model.linear import einsum
from alhena.model.storage.tensors import Tensors, read_settings

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # of the largest number, float32
WIDTH = 16
encode = jax.jit(usm.encode, static_argnums=(3, 4))


def settings(name: str) -> dict[str, Any]:
    return read_settings(GOLDEN / name / "config.json")["audio_config"]


def read(name: str, family: ModuleType, derived: Mapping[str, np.ndarray] | None = None) -> tuple[Any, Any]:
    """The weights of an encoder, each used once, and its configuration. ``derived`` are weights that no table has."""
    c = family.read_config(settings(name), GOLDEN / name)
    stored = Tensors(GOLDEN / name, ("model.",), "embed_audio.embedding_projection.weight")
    table, specs = family.table(c, WIDTH), model.audio_encoder(c).weights(c, WIDTH)
    arrays = {**read_arrays(table, stored.read), **(derived or {})}
    assert set(arrays) == set(spec.named(specs))
    stored.finish_part(() if derived is None else ("embed_vision.", "embed_audio.embedding", "embed_audio.hard"))
    leaves = [jnp.asarray(arrays[field], jnp.float32) for field in spec.named(specs)]
    assert [leaf.shape for leaf in leaves] == [s.shape for s in spec.named(specs).values()]
    return jax.tree.unflatten(jax.tree.structure(specs), leaves), c


def close(ours: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def finished_rows() -> np.ndarray:
    stored = Tensors(GOLDEN / "gemma3n_audio", ("model.",), "embed_audio.embedding.weight")
    return gemma3n_audio.finished_rows(stored.read, Embedder(128, 0, 20), Embedder(128, 128, 24), WIDTH)


def test_the_embeddings_of_gemma_3n_s_media_ids_equal_the_reference() -> None:
    with np.load(GOLDEN / "gemma3n_audio" / "golden.npz") as golden:
        close(finished_rows(), golden["rows"])


def test_the_usm_conformer_equals_gemma_3n() -> None:
    """Audio of several lengths in the chunks of two sequences equals each alone; frames after the valid ones have no effect.

    A third chunk of each sequence is empty.
    """
    params, c = read("gemma3n_audio", gemma3n_audio, {"padding": finished_rows()[-1]})
    assert (c.chunk, c.tokens(1), c.tokens(c.chunk), c.tokens(0)) == (3008, 376, 376, 0)
    with np.load(GOLDEN / "gemma3n_audio" / "golden.npz") as golden:
        frames, lengths, expected = golden["frames"], golden["lengths"], golden["vectors"]
    _, T, M = frames.shape
    frames = np.where(np.arange(T)[:, None] < lengths[:, None, None], frames, 99).reshape(2, 2, T, M)
    frames, lengths = np.pad(frames, ((0, 0), (0, 1), (0, 0), (0, 0))), np.pad(lengths.reshape(2, 2), ((0, 0), (0, 1)))
    ours, valid = encode(params, frames, lengths, c, "float32")
    close(ours[valid], expected.reshape(-1, WIDTH))
    assert valid.reshape(2, 3, -1).all(2).tolist() == [[True, True, False]] * 2
    assert valid.shape == (2, 3 * replace(c, chunk=T).tokens(3))


def test_the_usm_conformer_equals_gemma_4() -> None:
    """Two audios, one with a longer chunk than the reference's padding; twelve keys of the file's thirteen are visible."""
    params, c = read("gemma4_audio", gemma4_audio)
    assert (c.chunk, c.left, c.clipped, c.tokens(3000), c.tokens(2999), c.tokens(1)) == (3000, 4, True, 750, 750, 1)
    with np.load(GOLDEN / "gemma4_audio" / "golden.npz") as golden:
        frames, lengths, expected, mask = (golden[name] for name in ("frames", "lengths", "vectors", "valid"))
    frames = np.where(np.arange(64)[:, None] < lengths[:, None, None], frames, 99)
    frames = np.concatenate([frames, np.full((2, 8, 16), 77, np.float32)], 1)[None]
    ours, valid = encode(params, frames, lengths[None], c, "float32")
    assert valid.reshape(2, 18)[:, :16].tolist() == mask.tolist() and not valid.reshape(2, 18)[:, 16:].any()
    assert [c.tokens(int(n)) for n in lengths] == mask.sum(1).tolist()
    close(ours[valid], expected[mask])


def test_raw_samples_equal_gemma_4_unified() -> None:
    params, c = read("gemma4_unified_audio", gemma4_audio)
    with np.load(GOLDEN / "gemma4_unified_audio" / "golden.npz") as golden:
        frames, expected = golden["frames"], golden["vectors"]
    lengths = np.array([[7, 3]])
    ours, valid = jax.jit(unified_audio.encode, static_argnums=(3, 4))(params, frames[None], lengths, c, "float32")
    assert valid.sum() == 10 == sum(c.tokens(int(n)) for n in lengths[0])
    close(ours[0][:7], expected[0])
    close(ours[0][7:10], expected[1, :3])


@pytest.mark.parametrize(
    ("name", "family"),
    [("gemma3n_audio", gemma3n_audio), ("gemma4_audio", gemma4_audio), ("gemma4_unified_audio", gemma4_audio)],
)
def test_tensors_and_settings_are_written_as_they_were_read(name: str, family: ModuleType) -> None:
    """Tensors of bfloat16, to the bit: matrices keep the dtype."""
    c = family.read_config(settings(name), GOLDEN / name)
    written = json.loads(json.dumps(family.settings(c)))
    assert family.read_config(written, GOLDEN / name) == c
    assert {key: settings(name)[key] for key in written} == written
    stored = Tensors(GOLDEN / name, ("model.",), "embed_audio.embedding_projection.weight")
    theirs = {
        n: stored.check(n, source.shape).map().astype(ml_dtypes.bfloat16)
        for n, source in sources(family.table(c, WIDTH))
    }
    arrays = read_arrays(family.table(c, WIDTH), lambda n, shape: theirs[n])
    assert arrays["project"].dtype == ml_dtypes.bfloat16
    back = dict(tensors(family.table(c, WIDTH), arrays))
    assert set(back) == set(theirs)
    for tensor, array in back.items():
        np.testing.assert_array_equal(array.astype(ml_dtypes.bfloat16), theirs[tensor], err_msg=tensor)


def sources(table: Table) -> Iterator[tuple[str, Source]]:
    for entry in table.values():
        for source in (entry,) if isinstance(entry, Source) else entry:
            yield from ((name, source) for name in source.names)


def test_an_unclipped_conformer_has_the_same_tensors_but_for_the_bounds() -> None:
    c = gemma4_audio.read_config({**settings("gemma4_audio"), "use_clipped_linears": False}, GOLDEN)
    table = gemma4_audio.table(c, WIDTH)
    assert set(table) == set(spec.named(usm.weights(c, WIDTH)))
    clipped = names(gemma4_audio.table(replace(c, clipped=True), WIDTH))
    assert set(names(table)) == {name for name in clipped if not name.endswith(("_min", "_max"))}


def test_options_that_are_not_implemented_are_refused_by_name() -> None:
    path, gemma4, unified = Path("x/config.json"), settings("gemma4_audio"), settings("gemma4_unified_audio")
    for family, stored, message in (
        (gemma4_audio, {**gemma4, "gradient_clipping": 9.0}, r"config\.json: audio_config\.gradient_clipping is 9\.0"),
        (gemma4_audio, {**gemma4, "attention_chunk_size": 9}, r"config\.json: audio_config: attention_context_left is 5 and"),
        (gemma4_audio, {**gemma4, "attention_context_right": 1}, r"attention_context_right is 1; ours has 0"),
        (gemma4_audio, {**gemma4, "num_attention_heads": 5}, r"config\.json: audio_config: Usm\.heads is 5"),
        (gemma4_audio, {**unified, "hidden_size": 7}, r"hidden_size is 7; ours has 40"),
        (gemma4_audio, {**gemma4, "new": 1}, r"config\.json: audio_config.*new"),
        (gemma4_audio, settings("gemma3n_audio"), r"config\.json: audio_config\.model_type is 'gemma3n_audio'"),
        (gemma3n_audio, {**settings("gemma3n_audio"), "conf_reduction_factor": 3}, r"audio_config: Usm\.frames_per_token is 12"),
        (gemma3n_audio, gemma4, r"model_type is 'gemma4_audio'; gemma3n_audio can be read"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            family.read_config(stored, path)


def test_the_class_of_a_stored_encoder_is_found_by_its_fields() -> None:
    assert config.audio_class({"width": 8}) is config.Conformer
    assert config.audio_class({"channels": [4, 4], "mels": 8}) is config.Usm
    assert config.audio_class({"samples_per_token": 640}) is config.UnifiedAudio


@pytest.mark.parametrize("length", [1, 45, 64])
def test_usm_vectors_do_not_depend_on_padding_or_other_chunks(length: int) -> None:
    c = config.Usm(width=16, layers=2, heads=2, hidden=32, mels=8, chunk=64, channels=(4, 4), block=3, left=4, right=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.2 * rng.standard_normal(s.shape, np.float32), usm.weights(c, 8))
    frames = rng.standard_normal((1, 2, 64, 8)).astype(np.float32)
    lengths = np.array([[length, 64]])
    first, valid = encode(params, frames, lengths, c, "float32")
    assert valid[0].sum() == c.tokens(length) + c.tokens(64)
    changed = frames.copy()
    changed[0, 0, length:] = 9.0
    changed[0, 1] = 0.0
    second, _ = encode(params, changed, lengths, c, "float32")
    count = c.tokens(length)
    np.testing.assert_allclose(first[0, :count], second[0, :count], atol=1e-5)
    assert not np.allclose(first[0, 4 : 4 + c.tokens(64)], second[0, 4 : 4 + c.tokens(64)], atol=1e-2)


def test_layers_of_bfloat16_are_never_converted_all_at_once() -> None:
    c = config.Conformer(width=256, layers=8, heads=2, hidden=8)
    x, layers = np.random.default_rng(0).standard_normal((2, 256), np.float32), np.zeros((8, 256, 256), np.float32)
    layers += np.eye(256, dtype=np.float32) * np.arange(1, 9)[:, None, None] / 4

    def run(stack: Any, x: Any) -> Any:
        return run_layers(stack, None, x, lambda w, x: einsum("...i,io->...o", x, w, "bfloat16"), c, "bfloat16")

    stack = jnp.asarray(layers, jnp.bfloat16)
    compiled = jax.jit(run).lower(stack, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < stack.nbytes
    np.testing.assert_array_equal(compiled(stack, x), jax.jit(run)(layers, x))
