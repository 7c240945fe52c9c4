"""Structured answers: JSON of a schema, one of some texts, and calls of tools, enforced token by token with llguidance.

    OutputFormat, tools ─ grammar ─► Lark ─ llguidance ─► Matcher: mask() ─► sampler ─► accept(token) ─► mask() …

A ``Compiler`` belongs to one model: it knows the bytes of every token. Control tokens have no bytes, so that no text of a grammar is
one of them. A ``Matcher`` belongs to one answer; while the model thinks, it allows any text, and the grammar begins after the thought.
A mask is packed, 32 tokens in a number (``unpacked`` in constraints.py), and takes microseconds, with 262,144 tokens too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from alhena.content import Tool
from alhena.serve.decoding.sampling.sampler import OutputFormat
from alhena.serve.structured.call_grammar import CallMarks, call_rules, literal
from alhena.serve.structured.json_schema import json_schema
from alhena.shapes import UInt32
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.formats.answers import begins_in_thought
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.vocabulary import MAX_GRID, Vocabulary

# Between two symbols of JSON: nothing, a space, or a line end and an indentation. A model cannot pad without end.
WHITESPACE = r" |\n {0,16}"
JSON_OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}
MAX_CALLS, MAX_COMPILED = 32, 64
# An object of 512 optional properties has 1,024 items in a row; a state of the lexer has up to 2 kB.
LIMITS = LLParserLimits(
    max_items_in_row=20_000,
    step_max_items=100_000,
    max_lexer_states=30_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
Mask = UInt32[np.ndarray, " W"]


def text_bytes(encoder: AnyEncoder, size: int) -> list[bytes | None]:
    """The bytes that each of ``size`` tokens adds to a text; None for control tokens and ids that no answer may contain."""
    tokenizer = encoder.tokenizer
    hidden = set(tokenizer.controls) if isinstance(tokenizer, HfTokenizer) else {0}
    count = tokenizer.size
    if isinstance(encoder, Encoder):
        count = min(count, encoder.vocabulary.num_text)
    else:
        hidden |= set(encoder.never_sampled)
    # After another token of text, none loses the space that it begins with.
    before = tokenizer.encode("\n")[-1]
    text_before = tokenizer.decode([before])

    def of(token: int) -> bytes | None:
        if token in hidden or token >= count:
            return None
        if (byte := tokenizer.byte(token)) is not None:
            # At the begin of a text, SentencePiece removes a space, but not this byte: spaces have tokens of their own.
            return None if byte == ord(" ") else bytes([byte])
        return tokenizer.decode([before, token]).removeprefix(text_before).encode() or None

    return [of(token) for token in range(size)]


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of all tokens, and the tokens of a text that is forced."""

    bos_token_id = None

    def __init__(self, encoder: AnyEncoder, texts: Sequence[bytes | None], end: int) -> None:
        self._tokenizer, self._texts, self.eos_token_id = encoder.tokenizer, texts, end
        self.tokens = [f"<{token}>".encode() if text is None else text for token, text in enumerate(texts)]
        self.special_token_ids = [token for token, text in enumerate(texts) if text is None]
        self._ids = {text[0]: token for token, text in enumerate(texts) if text and len(text) == 1}
        self._before = len(encoder.tokenizer.encode("\n"))

    def __call__(self, data: bytes) -> list[int]:
        """The tokens that encoding gives inside of a text; single bytes where it would change the text."""
        text = data.decode()
        tokens = self._tokenizer.encode("\n" + text)[self._before :]
        if b"".join(self._texts[token] or b"" for token in tokens) == data:
            return tokens
        return [self._ids[byte] for byte in data]


@dataclass(frozen=True)
class _Thought:
    """How an answer thinks: ids of the marks of a thought, and what may be sampled inside of it."""

    opened: int
    closed: int
    mask: Mask


class Matcher:
    """The state of one answer: which tokens are allowed next. ``finished`` after an end token; ``is_complete`` when it was allowed by the grammar."""

    def __init__(self, matcher: LLMatcher, ends: Mask, thought: _Thought | None, in_thought: bool) -> None:
        self._matcher, self._ends, self._thought, self._in_thought = matcher, ends, thought, in_thought
        self._last: Mask | None = None
        self.finished, self.is_complete = False, False

    def mask(self) -> Mask:
        """The tokens that are allowed next, 32 in a number, the first in the lowest bit. Some token always is: the end token."""
        if self._in_thought:
            assert self._thought is not None
            return self._thought.mask
        if self.finished:
            return self._ends
        out = np.zeros_like(self._ends)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        # After an error, such as too many states, nothing is allowed.
        if self._matcher.is_error() or not out.any():
            return self._ends
        if self._thought is not None:
            _allow(out, self._thought.opened)
        self._last = out
        return out

    def accept(self, token: int) -> None:
        """Takes the next token. Raises ValueError for one that the mask excludes."""
        if self._in_thought:
            assert self._thought is not None
            self.finished = not _is_allowed(self._thought.mask, token) and _is_allowed(self._ends, token)
            if token == self._thought.closed:
                self._in_thought, self._thought = False, None
        elif _is_allowed(self._ends, token):
            self.is_complete = self.is_complete or (not self._matcher.is_error() and self._matcher.is_accepting())
            self.finished = True
        elif self._thought is not None and token == self._thought.opened:
            self._in_thought = True
        else:
            self._thought = None
            is_allowed = self._last is not None and _is_allowed(self._last, token)
            # A token that was allowed fails where a limit of the parser is met: then the answer can only end.
            if not self._matcher.consume_token(token) and not is_allowed:
                raise ValueError(f"the token {token} is not allowed here by the form that the answer must have")
            self._last = None

    def forced_tokens(self) -> list[int]:
        """The tokens that can only follow, in their usual encoding; empty where there is a choice."""
        if self._in_thought or self._thought is not None or self.finished or self._matcher.is_error():
            return []
        return self._matcher.compute_ff_tokens()


class Compiler:
    """Compiles output formats for one model of ``size`` token ids. Grammars are kept: the same format is compiled once."""

    def __init__(self, encoder: AnyEncoder, size: int) -> None:
        self._encoder, self._size = encoder, size
        ends = (encoder.vocabulary.end,) if isinstance(encoder, Encoder) else tuple(encoder.end_tokens)
        texts = text_bytes(encoder, size)
        wrapped = TokenizerWrapper(_Vocabulary(encoder, texts, ends[0]))
        self._tokenizer = LLTokenizer(wrapped, n_vocab=size, eos_token=list(ends))
        self._ends = np.zeros((size + 31) // 32, np.uint32)
        for token in ends:
            _allow(self._ends, token)
        self._text = _packed(np.array([text is not None for text in texts]))
        # SentencePiece, as we train it, begins each run of text with a space that decoding removes.
        self._run = "" if isinstance(encoder.tokenizer, HfTokenizer) else " "
        self._matcher = lru_cache(MAX_COMPILED)(self._compiled)

    def matcher(self, output: OutputFormat, tools: Sequence[Tool] = (), prompt: Sequence[int] = ()) -> Matcher:
        """The matcher of an answer to a prompt. Raises ValueError that names what cannot be enforced."""
        thought, in_thought = self._thinking(prompt)
        return Matcher(self._matcher(self._grammar(output, tools)).deep_copy(), self._ends, thought, in_thought)

    # ── grammars ───────────────────────────────────────────────────────────────────────────────────────────

    def _grammar(self, output: OutputFormat, tools: Sequence[Tool]) -> str:
        """The grammar of an answer in Lark."""
        rules, starts = list[str](), list[str]()
        if output.json_schema is not None and output.choices:
            raise ValueError("an answer is JSON or one of some texts, not both")
        if output.choices:
            starts.append(" | ".join(literal(self._run + text) for text in output.choices))
        elif output.json_schema is not None:
            schema = json_schema(_parsed(output.json_schema), "the schema")
            rules.append(f"json: %json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}")
            starts.append(f"{literal(self._run)} json" if self._run else "json")
        if output.calls:
            rules += call_rules(_selected(tools, output.calls), self._call_marks())
            if starts or not output.text_allowed:
                starts = [f"call{{1,{MAX_CALLS}}}", *(starts if output.text_allowed else ())]
            else:
                rules += ["TEXT: /(?s:.+)/", *self._images()]
                starts = [f"TEXT? (({' | '.join(['call', *(['image'] if self._images() else [])])}) TEXT?)*"]
        if not starts:
            raise ValueError("an output format without a schema, texts or calls enforces nothing")
        return "\n".join([f"start: {' | '.join(starts)}", *rules])

    def _compiled(self, grammar: str) -> LLMatcher:
        """The matcher of a grammar at its start."""
        is_error, messages = LLMatcher.validate_grammar_with_warnings(
            LLMatcher.grammar_from_lark(grammar), self._tokenizer, limits=LIMITS
        )
        if messages:
            kind = "cannot be enforced" if is_error else "can be enforced in part only"
            raise ValueError(f"the schema {kind}: {messages[0].splitlines()[0][:300]}")
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(f"the schema cannot be enforced: {matcher.get_error().splitlines()[0][:300]}")
        return matcher

    def _call_marks(self) -> CallMarks:
        if isinstance(self._encoder, Encoder):
            of, names = self._encoder.vocabulary.control, ("<call>", "<call_end>", "<quote>")
            try:
                return CallMarks(of(names[0]), of(names[1]), of(names[2]), self._run)
            except ValueError:
                raise ValueError("this model calls no tools: its format has no tokens for calls") from None
        controls = self._encoder.settings.controls
        if "call" not in controls:
            raise ValueError(f"{self._encoder.settings.format} calls no tools; Gemma 4 does")
        return CallMarks(controls["call"], controls["call_end"], controls["quote"], self._run)

    def _images(self) -> list[str]:
        """The rule of generated images, which the image grammar makes exact."""
        if not isinstance(self._encoder, Encoder):
            return []
        v: Vocabulary = self._encoder.vocabulary
        rows, columns = (f"<[{first}-{first + MAX_GRID - 1}]>" for first in (v.rows(1), v.columns(1)))
        codes = f"<[{v.first_code}-{v.size - 1}]>"
        return [f"image: <[{v.control('<boi_out>')}]> {rows} {columns} {codes}+ <[{v.control('<eoi_out>')}]>"]

    # ── thoughts ───────────────────────────────────────────────────────────────────────────────────────────

    def _thinking(self, prompt: Sequence[int]) -> tuple[_Thought | None, bool]:
        """The thought that an answer may begin with, and whether the prompt has opened it."""
        settings = None if isinstance(self._encoder, Encoder) else self._encoder.settings
        if settings is None or "think" not in settings.controls:
            return None, False
        in_thought = begins_in_thought(settings, prompt)
        if not in_thought and settings.controls["think"] not in prompt:
            return None, False
        closed, mask = settings.controls["channel_end"], self._text.copy()
        _allow(mask, closed)
        return _Thought(settings.controls["channel"], closed, mask), in_thought


def _selected(tools: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    """The tools that may be called."""
    declared = {tool.name: tool for tool in tools}
    if unknown := [name for name in names if name not in declared]:
        raise ValueError(f"the function {unknown[0]!r} is to be called, but is not declared")
    return [declared[name] for name in dict.fromkeys(names)]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        raise ValueError("the schema is no JSON, or is nested too deeply") from None


def _allow(mask: Mask, token: int) -> None:
    mask[token // 32] |= np.uint32(1 << token % 32)


def _is_allowed(mask: Mask, token: int) -> bool:
    return bool(mask[token // 32] >> np.uint32(token % 32) & 1)


def _packed(allowed: np.ndarray) -> Mask:
    """A mask of bools, 32 in a number."""
    padded = np.pad(allowed, (0, -len(allowed) % 32))
    return np.packbits(padded, bitorder="little").view(np.uint32)
