"""The tokenizer of a GGUF file as a ``tokenizer.json``, for ``tokens.hf_tokenizer``.

Two kinds are read: "gemma4", which has the merges, and "llama", a SentencePiece vocabulary with a score for each token. There the
merges follow from the scores: SentencePiece merges the pair of neighbors that makes the token of the best score, so the ways to make
a token are merges in the order of the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from alhena.model.families.gguf.file import GgufFile
from alhena.schema import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KEY = "tokenizer.ggml."
SPACE = "▁"
# A longer token cannot be made by few enough merges; Gemma's longest has 93 characters.
MAX_LENGTH = 1024
Merge = tuple[str, str]


def _tokens(file: GgufFile) -> tuple[list[str], list[int]]:
    """Texts and types of the tokens. Raises ValueError when they do not fit each other or the embedding."""
    tokens = file.get(KEY + "tokens", list)
    types = file.get(KEY + "token_type", np.ndarray).tolist()
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else len(tokens)
    if not len(tokens) == len(types) == rows:
        raise ValueError(f"{file.path}: {len(tokens)} tokens, {len(types)} types of tokens, {rows} embeddings")
    if wrong := set(types) - set(range(NORMAL, BYTE + 1)):
        raise ValueError(f"{file.path}: tokens of unknown type {shown(min(wrong))}")
    # llama.cpp looks for these in the text itself, where spaces are not replaced yet.
    tokens = [t.replace(" ", SPACE) if kind == USER_DEFINED else t for t, kind in zip(tokens, types, strict=True)]
    if len(set(tokens)) != len(tokens) or max(map(len, tokens), default=0) > MAX_LENGTH:
        raise ValueError(f"{file.path}: tokens that occur twice, or are longer than {MAX_LENGTH} characters")
    return tokens, types


def merges_by_score(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[Merge]:
    """All ways to make a token of ``scores`` out of two others, the best first.

    Ways to make the same token are in an order that Hugging Face's converter has too: longest first part, then longest second part.

    >>> merges_by_score({"a": 0, "b": 1, "ab": 2, "aba": 3}, {"ab": -1.0, "aba": 0.0})
    [('ab', 'a'), ('a', 'b')]
    """
    ways = []
    for token, score in scores.items():
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ways += [(score, pair) for pair in known]
    ways.sort(key=lambda way: (way[0], len(way[1][0]), len(way[1][1])), reverse=True)
    return [pair for _, pair in ways]


def _stored_merges(file: GgufFile, vocabulary: Mapping[str, int]) -> list[Merge]:
    """The merges of the file, as "first second"."""
    out = []
    for text in file.get(KEY + "merges", list):
        first, _, second = text.partition(" ")
        if not (first in vocabulary and second in vocabulary and first + second in vocabulary):
            raise ValueError(f"{file.path}: {shown(text)} is no merge of two tokens to a third")
        out.append((first, second))
    return out


def _merges(file: GgufFile, tokens: list[str], types: list[int]) -> list[Merge]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    match kind := file.get(KEY + "model", str):
        case "gemma4":
            return _stored_merges(file, vocabulary)
        case "llama":
            scores = file.get(KEY + "scores", np.ndarray).tolist()
            if len(scores) != len(tokens) or not np.isfinite(scores).all():
                raise ValueError(f"{file.path}: {KEY}scores has not one number for each token")
            # Tokens that are looked for in the text come before all others.
            best = {USER_DEFINED: 0.0}
            rated = zip(tokens, types, scores, strict=True)
            made = {token: best.get(kind, score) for token, kind, score in rated if kind in (NORMAL, USER_DEFINED)}
            return merges_by_score(vocabulary, made)
        case _:
            raise ValueError(f"{file.path}: a tokenizer of type {shown(kind)}; llama and gemma4 can be read")


def _added(tokens: Iterable[str], types: Iterable[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def has_tokenizer(file: GgufFile) -> bool:
    """Whether a file has the tokenizer of an open model: not none, nor ours, which adds a space before the text."""
    return file.get(KEY + "model", str) != "none" and not file.get(KEY + "add_space_prefix", bool, True)


def tokenizer_json(file: GgufFile) -> bytes:
    """The content of ``tokenizer.json``. Raises ValueError that names the file for a tokenizer that cannot be read.

    Control tokens are flagged as special.
    """
    if file.get(KEY + "add_space_prefix", bool, True):
        raise ValueError(f"{file.path}: the tokenizer adds a space before the text, which is not supported")
    tokens, types = _tokens(file)
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN]
    model: dict[str, Any] = {
        "type": "BPE",
        "unk_token": unknown[0] if unknown else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    model |= {"ignore_merges": False, "vocab": {token: i for i, token in enumerate(tokens)}}
    model["merges"] = _merges(file, tokens, types)
    spaces = {"String": SPACE}
    decoders = [{"type": "Replace", "pattern": spaces, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    out = {
        "version": "1.0",
        "added_tokens": _added(tokens, types),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    return json.dumps(out, ensure_ascii=False).encode()
