"""llama.cpp by its C functions: tokens, logits, times. Imported by workers under an interpreter that has ``xllamacpp`` and NumPy.

That package's Python interface gives no logits of a prompt, but its library exports the functions of llama.h. The structures of
parameters grow from version to version: they are passed as blocks that are larger than they are, and only the sizes at their
beginning are set, after a check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

Int32s = POINTER(c_int32)


class Parameters(ctypes.Structure):
    _fields_ = [("bytes", c_uint8 * 2048)]


class TokenBatch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", c_int32), ("token", Int32s), ("embd", c_void_p), ("pos", Int32s), ("n_seq_id", Int32s),
        ("seq_id", POINTER(Int32s)), ("logits", POINTER(c_int8)),
    ]  # fmt: skip


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_version": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (Parameters, []),
    "llama_context_default_params": (Parameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, Parameters]),
    "llama_init_from_model": (c_void_p, [c_void_p, Parameters]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_n_ctx": (ctypes.c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, Int32s, c_int32, c_bool, c_bool]),
    "llama_batch_init": (TokenBatch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [TokenBatch]),
    "llama_decode": (c_int32, [c_void_p, TokenBatch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
}
# Type of a callback that takes a line of the log and drops it.
Log = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class LlamaCpp:
    """A model with sequences of at most ``context`` tokens together."""

    def __init__(self, path: Path, context: int, sequences: int = 1, exact: bool = False) -> None:
        """``exact``: with a cache of float32, and without flash attention, which rounds to float16."""
        import xllamacpp

        self._lib: Any = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._quiet = Log(lambda level, text, data: None)
        self._lib.llama_log_set(ctypes.cast(self._quiet, c_void_p), None)
        self._lib.llama_backend_init()
        self.version = f"llama.cpp {self._lib.llama_version().decode()} (xllamacpp {xllamacpp.__version__})"
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise ValueError(f"{path}: llama.cpp cannot load it")
        parameters = self._lib.llama_context_default_params()
        sizes = ctypes.cast(ctypes.byref(parameters), Int32s)
        # n_ctx, n_batch, n_ubatch
        if sizes[0:3] != [512, 2048, 512]:
            raise RuntimeError(f"llama_context_params begins with {sizes[0:3]}: another layout than is known here")
        # n_seq_max
        sizes[0], sizes[1], sizes[3] = context, context, sequences
        if exact:
            # rope_scaling_type, pooling_type, attention_type, flash_attn_type; type_k, type_v: float16
            if (sizes[10:14], sizes[26:28]) != ([-1] * 4, [1, 1]):
                raise RuntimeError("llama_context_params has another layout than is known here")
            sizes[13], sizes[26], sizes[27] = 0, 0, 0
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        self.use_threads(1)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = self._lib.llama_vocab_n_tokens(self._vocab)
        self._batch = self._lib.llama_batch_init(context, 0, 1)

    def use_threads(self, count: int) -> None:
        """Number of threads; they wait for each other in busy loops, so that more than there are idle cores are very slow."""
        self._lib.llama_set_n_threads(self._context, count, count)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, without begin-of-sequence token; names of control tokens are text."""
        data = text.encode()
        out = (c_int32 * (len(data) + 1))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), out, len(out), False, False)
        return out[:count]

    def clear(self) -> None:
        """Forgets the sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def forget(self, sequence: int, first: int) -> None:
        """Forgets the tokens of one sequence from a position on."""
        if not self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), sequence, first, -1):
            raise RuntimeError("llama_memory_seq_rm cannot remove a part of a sequence")

    def feed(self, tokens: Sequence[int], first: int, every: bool = False) -> np.ndarray:
        """Appends tokens, the first of them at position ``first``: logits after the last one, or ``[tokens, V]`` after every one."""
        count = len(tokens)
        self._decode(tokens, range(first, first + count), [0] * count, [every or i == count - 1 for i in range(count)])
        indices = range(len(tokens)) if every else [len(tokens) - 1]
        out = [
            np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, i), (self.vocabulary,)).copy()
            for i in indices
        ]
        return np.stack(out) if every else out[0]

    def feed_batch(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Appends tokens to sequences; logits are computed after the last one of each."""
        last = {sequence: i for i, sequence in enumerate(sequences)}
        self._decode(tokens, positions, sequences, [last[s] == i for i, s in enumerate(sequences)])

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], logits: Sequence[bool]
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(zip(tokens, positions, sequences, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = logits[i]
        if code := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
