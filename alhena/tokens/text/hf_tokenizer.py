"""Text tokenizer of imported models: byte-pair encoding from a ``tokenizer.json`` of the Hugging Face ``tokenizers`` library.

    tokenizer.json  ── load ──►  HfTokenizer  ── save ──►  tokenizer.json

Only the kind that Gemma has is read, since others would lose text: BPE with byte fallback, spaces as ``▁``, nothing stripped.
Decoding an encoding returns the text (but for ``▁``, which becomes a space). A *control token* is never the result of encoding: its
literal text is encoded as ordinary text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from alhena.files import write_atomically
from alhena.large_pages import return_freed_memory
from alhena.model.storage.tensors import regular
from alhena.schema import shown

# Its file in a model folder.
TOKENIZER = "tokenizer.json"
# Twice the size of Gemma's.
MAX_BYTES = 64 * 2**20
# The character that stands for a space.
SPACE = "▁"
NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# It never splits: the normalizer leaves no space.
PRE_TOKENIZER = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


class HfTokenizer:
    """A tokenizer of Gemma's kind, with the same interface as ``tokenizer.TextTokenizer``."""

    def __init__(self, tokenizer: Tokenizer, controls: Collection[int] = ()) -> None:
        """``controls`` are the ids of control tokens beside those that the file marks as special. See :meth:`from_bytes`."""
        self._tokenizer = tokenizer
        _check_kind(tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._bytes = {self.id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        self.controls = _flag_controls(tokenizer, frozenset(controls))

    @classmethod
    def from_bytes(cls, data: bytes, controls: Collection[int] = ()) -> HfTokenizer:
        """Loads the content of a ``tokenizer.json``.

        Raises ValueError when it is none, or of a kind that is not supported, or when text can be encoded as a control token.
        """
        if len(data) > MAX_BYTES:
            raise ValueError(f"a tokenizer of {len(data):,} bytes; at most {MAX_BYTES:,} are read")
        return cls(_parse(data), controls)

    @classmethod
    def load(cls, path: Path, controls: Collection[int] = ()) -> HfTokenizer:
        """:meth:`from_bytes` of a file. Raises ValueError that names the file."""
        if (size := regular(path).stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path}: {size:,} bytes; a tokenizer of at most {MAX_BYTES:,} is read")
        try:
            return cls.from_bytes(path.read_bytes(), controls)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        finally:
            # Parsing Gemma's needs 290 MB, the tokenizer 100.
            return_freed_memory()

    def to_bytes(self) -> bytes:
        return self._tokenizer.to_str().encode()

    def save(self, path: Path) -> None:
        write_atomically(path, self.to_bytes())

    def __reduce__(self) -> tuple[Callable[..., HfTokenizer], tuple[bytes, frozenset[int]]]:
        # The library's own pickling forgets that the text of special tokens is to be encoded as text.
        return HfTokenizer.from_bytes, (self.to_bytes(), self.controls)

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def id(self, token: str) -> int:
        """The id of a token by its text, control tokens included. Raises ValueError when there is none."""
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"the tokenizer has no token {shown(token)}")
        return number

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of a text: no control token, no begin-of-sequence token."""
        return self._encoding(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """:meth:`encode`, and the index of the character in ``text`` at which each token starts (one character may be several tokens)."""
        encoding = self._encoding(text)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _encoding(self, text: str) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} of the text is a surrogate: no Unicode text") from None
        return self._tokenizer.encode(text, add_special_tokens=False)

    def byte(self, token: int) -> int | None:
        """The byte of a byte-fallback token; None for every other token."""
        return self._bytes.get(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, with the names of control tokens; bytes that are no UTF-8 become U+FFFD.

        The library would replace a whole run of bytes when one of them is wrong: a stream of tokens could not be decoded as they arrive.
        """
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        if token in self._bytes:
            return bytes([self._bytes[token]])
        text = self._tokenizer.id_to_token(token)
        if text is None:
            raise ValueError(f"no token has the id {token}; the tokenizer has {self.size:,}")
        return text.replace(SPACE, " ").encode()


def _parse(data: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    # A panic of the library derives from BaseException.
    except BaseException as error:
        message = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise ValueError(f"not a tokenizer.json ({message[:200]})") from None


def _check_kind(tokenizer: Tokenizer) -> None:
    """Raises ValueError unless the tokenizer is of Gemma's kind."""
    model = tokenizer.model
    if not isinstance(model, models.BPE):
        raise ValueError(f"a tokenizer of type {type(model).__name__}; only BPE is supported")
    expected = {"byte_fallback": True, "ignore_merges": False, "dropout": None, "continuing_subword_prefix": None}
    expected |= {"end_of_word_suffix": None}
    for name, value in expected.items():
        if (getattr(model, name) or None) != (value or None):
            raise ValueError(f"model.{name} is {shown(getattr(model, name))}; only {value} is supported")
    for name, allowed in (
        ("normalizer", (NORMALIZER,)),
        ("pre_tokenizer", (None, PRE_TOKENIZER)),
        ("decoder", (DECODER,)),
    ):
        part = getattr(tokenizer, name)
        stored = None if part is None else json.loads(part.__getstate__())
        if stored not in allowed:
            raise ValueError(f"{name} is {shown(stored)}; only {' or '.join(map(str, allowed))} is supported")
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word:
            raise ValueError(f"the added token {shown(token.content)} strips text around it, which is not supported")


def _flag_controls(tokenizer: Tokenizer, controls: frozenset[int]) -> frozenset[int]:
    """Flags control tokens as special, so that their text is encoded as text. Returns the ids of all special tokens.

    Raises ValueError for an id without a token, and when merges make a control token out of text.
    """
    if absent := [number for number in controls if tokenizer.id_to_token(number) is None]:
        raise ValueError(f"no token has the id {min(absent)}, which is a control token")
    names = [tokenizer.id_to_token(number) for number in sorted(controls)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    special = {number: token for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for number, token in special.items():
        # If some text is encoded as this token, this text is: merges do not depend on what stands around it.
        if not special.keys().isdisjoint(tokenizer.encode(token.content, add_special_tokens=False).ids):
            raise ValueError(f"the control token {number} {shown(token.content)} can be written by text")
    return frozenset(special)
