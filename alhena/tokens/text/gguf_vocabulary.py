"""Tokenizers as metadata of GGUF files, such that llama.cpp makes the same tokens of a text.

    SentencePiece (ours)     "llama": it merges the pair of neighbors that makes the token of the best score, as SentencePiece does
    tokenizer.json (BPE)     "llama" where the order of its merges is one of scores, as Gemma 1 to 3 have; else "gemma4", with the merges

Ids beyond the text's are control tokens and image codes of ours, or unused. A control token is never the result of merges.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sentencepiece

from alhena.model.families.gguf.tokenizer import (
    BYTE,
    CONTROL,
    KEY,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Merge,
    merges_by_score,
)
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.text.tokenizer import LINE_END, TextTokenizer, Tokenizer
from alhena.tokens.vocabulary import CONTROLS, MAX_GRID, NUM_TIMES, Vocabulary

# The score of tokens that no merge makes.
NO_SCORE = -(2.0**24)
# Chat templates of the formats, for programs that run such. Ours has one turn for a system instruction and the first question.
OWN_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '<user>' + m['content'] + '\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<model>' + m['content'] + '<end>' }}"
    "{% else %}{{ ('' if loop.index0 == 1 and messages[0]['role'] == 'system' else '<user>') + m['content'] + '<end>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<start_of_turn>user\\n' + m['content'] | trim + '\\n\\n' }}{% else %}"
    "{{ '' if loop.index0 == 1 and messages[0]['role'] == 'system' else "
    "('<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n') }}"
    "{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Tokens:
    """Texts, scores and types of all tokens, and the merges where scores cannot say them."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    merges: list[Merge] | None = None

    def metadata(self, add_space: bool) -> dict[str, Any]:
        out = {
            "model": "llama" if self.merges is None else "gemma4",
            "tokens": self.texts,
            "scores": self.scores,
            "token_type": self.types,
            "add_space_prefix": add_space,
            "add_bos_token": True,
            "add_eos_token": False,
        }
        if self.merges is not None:
            out["merges"] = [f"{a} {b}" for a, b in self.merges]
        return {KEY + name: value for name, value in out.items()}


def _own(tokenizer: TextTokenizer) -> Tokens:
    """The text tokens of ours. SentencePiece reads a line end as U+2028; here it is a token of its own text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    size = processor.vocab_size()
    texts = [processor.id_to_piece(i) for i in range(size)]
    texts = ["\n" if text == LINE_END else text for text in texts]
    kinds = [UNKNOWN if processor.is_unknown(i) else BYTE if processor.is_byte(i) else NORMAL for i in range(size)]
    return Tokens(texts, [float(processor.get_score(i)) for i in range(size)], kinds)


def _imported(tokenizer: HfTokenizer) -> Tokens:
    """The tokens of an imported model."""
    stored = json.loads(tokenizer.to_bytes())
    vocabulary: dict[str, int] = dict(stored["model"]["vocab"])
    added = {token["content"]: token for token in stored["added_tokens"]}
    vocabulary |= {text: token["id"] for text, token in added.items()}
    texts = [f"[PAD{i}]" for i in range(max(vocabulary.values()) + 1)]
    for text, i in vocabulary.items():
        texts[i] = text
    unknown = stored["model"].get("unk_token")

    def kind(i: int, text: str) -> int:
        if text == unknown:
            return UNKNOWN
        if tokenizer.byte(i) is not None:
            return BYTE
        if i in tokenizer.controls:
            return CONTROL
        return USER_DEFINED if text in added else NORMAL

    kinds = [kind(i, text) if vocabulary.get(text) == i else UNUSED for i, text in enumerate(texts)]
    merges = [_merge(merge) for merge in stored["model"]["merges"]]
    scores = _scores(texts, kinds, merges)
    # llama.cpp looks for these in the text itself, where spaces are not replaced yet.
    shown = [t.replace(SPACE, " ") if k == USER_DEFINED else t for t, k in zip(texts, kinds, strict=True)]
    if scores is None:
        return Tokens(shown, [NO_SCORE] * len(texts), kinds, merges)
    return Tokens(shown, scores, kinds)


def _merge(stored: str | Sequence[str]) -> Merge:
    """Both tokens of a merge, which files have as one text or as a list."""
    left, right = stored.split(" ", 1) if isinstance(stored, str) else stored
    return left, right


def _scores(texts: Sequence[str], kinds: Sequence[int], merges: Sequence[Merge]) -> list[float] | None:
    """Scores of the tokens from which the same merges follow; None where there are none.

    Merges to user-defined tokens are not compared: llama.cpp looks for these in the text, the longest first, before it merges.
    """
    rank: dict[str, int] = {}
    for i, (first, second) in enumerate(merges):
        rank.setdefault(first + second, i)
    # Whole numbers are exact in float32.
    scores = {text: -1.0 - i for i, text in enumerate(sorted(rank, key=rank.__getitem__))}
    normal = {text for text, kind in zip(texts, kinds, strict=True) if kind == NORMAL}
    made = {text: scores.get(text, NO_SCORE) for text in texts if text in normal}
    vocabulary = {text: i for i, text in enumerate(texts)}
    given = [merge for merge in merges if "".join(merge) in normal]
    if len(scores) >= 2**24 or merges_by_score(vocabulary, made) != given:
        return None
    return [scores.get(text, NO_SCORE) for text in texts]


def unreachable(name: str, texts: Collection[str]) -> str:
    """The name of a control token, in more brackets where a merge of two tokens of the text would make it."""
    while name in texts or any(name[:i] in texts and name[i:] in texts for i in range(1, len(name))):
        name = f"<{name}>"
    return name


def _with_controls(text: Tokens, v: Vocabulary) -> Tokens:
    """The text tokens of a model of ours, then its control tokens and image codes."""
    known = set(text.texts)
    padding = [f"[PAD{i}]" for i in range(len(text.texts), v.num_text)]
    names = [*CONTROLS, *(f"<time {k}>" for k in range(NUM_TIMES))]
    names += [f"<{kind} {n}>" for kind in ("rows", "columns") for n in range(1, MAX_GRID + 1)]
    codes = [f"<code {k}>" for k in range(v.num_codes)]
    added = [unreachable(name, known) for name in [*padding, *names, *codes]]
    kinds = [UNUSED] * len(padding) + [CONTROL] * len(names) + [UNUSED] * len(codes)
    count = v.num_text
    texts = text.texts[:count] + added
    return Tokens(texts, text.scores[:count] + [NO_SCORE] * len(added), text.types[:count] + kinds, text.merges)


def own_metadata(tokenizer: Tokenizer, v: Vocabulary) -> dict[str, Any]:
    """The metadata of a model in our own format; its text tokenizer may be that of an imported model."""
    is_own = isinstance(tokenizer, TextTokenizer)
    text = _own(tokenizer) if isinstance(tokenizer, TextTokenizer) else _imported(tokenizer)  # type: ignore[arg-type]
    tokens = _with_controls(text, v)
    names = {"bos": "<bos>", "eos": "<end>", "eot": "<end>", "padding": "<pad>"}
    ids = {f"{KEY}{name}_token_id": v.control(token) for name, token in names.items()}
    template = OWN_TEMPLATE
    for name in ("<bos>", "<user>", "<model>", "<end>"):
        template = template.replace(f"'{name}", f"'{tokens.texts[v.control(name)]}")
    return tokens.metadata(is_own) | ids | {"tokenizer.chat_template": template}


def imported_metadata(
    tokenizer: HfTokenizer, controls: Mapping[str, int], size: int, template: str = ""
) -> dict[str, Any]:
    """The metadata of an imported model of ``size`` ids, with the ids of its control tokens by our names of them."""
    tokens = _imported(tokenizer)
    missing = [f"[PAD{i}]" for i in range(len(tokens.texts), size)]
    padded = Tokens(
        (tokens.texts + missing)[:size],
        (tokens.scores + [NO_SCORE] * len(missing))[:size],
        (tokens.types + [UNUSED] * len(missing))[:size],
        tokens.merges,
    )
    names = {"bos": "bos", "eos": "eos", "eot": "turn_end", "padding": "pad"}
    ids = {f"{KEY}{name}_token_id": controls[ours] for name, ours in names.items() if controls.get(ours, size) < size}
    if UNKNOWN in padded.types:
        ids[KEY + "unknown_token_id"] = padded.types.index(UNKNOWN)
    out = padded.metadata(False) | ids
    return out | ({"tokenizer.chat_template": template} if template else {})
