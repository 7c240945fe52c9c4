"""Vocabularies written for GGUF: llama.cpp's merging of them makes our tokens, and the reader makes the same tokenizer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alhena.model.families.gguf.file import GgufFile
from alhena.model.families.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_json
from alhena.tokens.text.gguf_vocabulary import imported_metadata, own_metadata
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.text.text_file import OWN_TOKENIZER
from alhena.tokens.text.tokenizer import TextTokenizer
from alhena.tokens.vocabulary import CONTROLS, Vocabulary
from tests.tokens.small_hf_tokenizer import CONTROLS as GEMMA_CONTROLS
from tests.tokens.small_hf_tokenizer import small_tokenizer

NANO = Path(__file__).parents[2] / "alhena" / "nano"
GOLDEN = Path(__file__).parent / "golden" / "llama_tokens.json"
OWN = TextTokenizer.from_bytes((NANO / OWN_TOKENIZER).read_bytes())
VOCABULARY = Vocabulary(OWN.size, 12)
METADATA = {key.removeprefix("tokenizer.ggml."): value for key, value in own_metadata(OWN, VOCABULARY).items()}
HF = HfTokenizer.from_bytes(small_tokenizer(), GEMMA_CONTROLS.values())


def merged_by_scores(text: str, metadata: dict[str, Any]) -> list[int]:
    """Tokens as llama.cpp makes them of a text without user-defined tokens: the pair of the best score is merged, the first of equals."""
    ids = {token: i for i, token in enumerate(metadata["tokens"])}
    if not text:
        return []
    symbols = list((" " if metadata["add_space_prefix"] else "") + text)
    symbols = ["▁" if s == " " else s for s in symbols]
    while True:
        pairs = [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not pairs:
            break
        _, i = max(pairs, key=lambda pair: (metadata["scores"][pair[0]], -pair[1]))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    bytes_of = lambda s: [ids[f"<0x{byte:02X}>"] for byte in s.encode()]  # noqa: E731
    return [i for s in symbols for i in ([ids[s]] if s in ids else bytes_of(s))]


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2028"), max_size=40)
    | st.text("the cat\n <end>19é▁", max_size=60)
)
@example("  two\n\n\tspaces ▁ <bos><user> <0x41> <code 3> 漢字 👩‍👩‍👧🏽 007")
def test_scores_of_ours_make_our_tokens(text):
    assert merged_by_scores(text, METADATA) == OWN.encode(text)


def test_llama_cpp_makes_our_tokens():
    """Its tokens of the exported file, by tests/tokens/golden/make_llama_tokens.py."""
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) > 20
    for text, ids in golden:
        assert OWN.encode(text) == ids == merged_by_scores(text, METADATA), text


def test_ids_of_ours_have_their_types():
    types, v = METADATA["token_type"], VOCABULARY
    assert len(types) == len(METADATA["tokens"]) == len(METADATA["scores"]) == v.size == len(set(METADATA["tokens"]))
    assert (types.count(UNKNOWN), types.count(BYTE), types.count(UNUSED)) == (1, 256, 12)
    assert all(types[v.control(name)] == CONTROL and METADATA["tokens"][v.control(name)] == name for name in CONTROLS)
    assert types.count(CONTROL) == v.first_code - OWN.size and set(types[v.first_code :]) == {UNUSED}
    ids = {name: METADATA[f"{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": v.bos, "eos": v.end, "eot": v.end, "padding": v.pad}
    assert METADATA["add_space_prefix"] and METADATA["add_bos_token"] and not METADATA["add_eos_token"]


def test_no_merge_makes_a_control_token():
    """Where the text has the tokens "<us" and "er>", llama.cpp would merge them to <user>: that gets another name."""
    stored = json.loads(small_tokenizer())
    size = len(stored["model"]["vocab"])
    stored["model"]["vocab"] |= {"<us": size, "er>": size + 1}
    tokenizer = HfTokenizer.from_bytes(json.dumps(stored).encode(), GEMMA_CONTROLS.values())
    # Two ids of the text have no token.
    v = Vocabulary(tokenizer.size + 2, 2)
    metadata = own_metadata(tokenizer, v)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[v.control("<user>")] == "<<user>>" and tokens[v.control("<model>")] == "<model>"
    # The imported tokenizer has a <bos> of its own.
    assert tokens[v.bos] == "<<bos>>" and metadata["tokenizer.ggml.bos_token_id"] == v.bos
    assert "'<<user>>'" in metadata["tokenizer.chat_template"] and "'<user>'" not in metadata["tokenizer.chat_template"]
    assert len(tokens) == v.size and len(set(tokens)) == v.size


def read_back(metadata: dict[str, Any]) -> HfTokenizer:
    arrays = {"tokenizer.ggml.token_type": np.int32, "tokenizer.ggml.scores": np.float32}
    values = {key: np.array(v, arrays[key]) if key in arrays else v for key, v in metadata.items()}
    return HfTokenizer.from_bytes(tokenizer_json(GgufFile(Path("model.gguf"), values, {})))


@pytest.mark.parametrize("kind", ["llama", "gemma4"])
def test_an_imported_tokenizer_is_read_again(kind):
    """By scores, where the merges are in an order that scores can say; else with the merges."""
    stored = json.loads(small_tokenizer())
    if kind == "gemma4":
        # Of two ways to make a token one is better than another token's, the other worse.
        merges = stored["model"]["merges"]
        size = len(stored["model"]["vocab"])
        stored["model"]["vocab"] |= {"ab": size, "abc": size + 1, "bc": size + 2}
        merges += [["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]]
    tokenizer = HfTokenizer.from_bytes(json.dumps(stored).encode(), GEMMA_CONTROLS.values())
    controls = {"bos": 2, "eos": 1, "pad": 0, "turn": 12, "turn_end": 13}
    size = tokenizer.size + 3
    metadata = imported_metadata(tokenizer, controls, size)
    assert metadata["tokenizer.ggml.model"] == kind and metadata["tokenizer.ggml.eot_token_id"] == 13
    types = metadata["tokenizer.ggml.token_type"]
    assert len(types) == size and types[-3:] == [UNUSED] * 3 and types[3] == UNKNOWN
    assert {types[i] for i in (0, 1, 2, 12, 13)} == {CONTROL} and types.count(BYTE) == 256
    assert {USER_DEFINED, NORMAL} <= set(types)
    again = read_back(metadata)
    assert again.controls == tokenizer.controls
    for text in ("the lambs  \n\n<h1>thethe</h1>", "<bos><start_of_turn>é漢👍", " a▁b   c\t", "abc bc ab abcabc", ""):
        assert again.encode(text) == tokenizer.encode(text)
