"""Encoders in llama.cpp (its library mtmd) by its C functions: soft tokens of an image or of audio."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import LlamaCpp


class Parameters(ctypes.Structure):
    """``mtmd_context_params``, in a block that is larger: nothing of it is changed."""

    _fields_ = [("bytes", c_uint8 * 512)]


class InputText(ctypes.Structure):
    _fields_ = [("text", c_char_p), ("add_special", c_bool), ("parse_special", c_bool)]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mtmd_log_set": (None, [c_void_p, c_void_p]),
    "mtmd_context_params_default": (Parameters, []),
    "mtmd_init_from_file": (c_void_p, [c_char_p, c_void_p, Parameters]),
    "mtmd_default_marker": (c_char_p, []),
    "mtmd_bitmap_init": (c_void_p, [c_uint32, c_uint32, c_void_p]),
    "mtmd_bitmap_init_from_audio": (c_void_p, [c_size_t, POINTER(c_float)]),
    "mtmd_input_chunks_init": (c_void_p, []),
    "mtmd_tokenize": (c_int32, [c_void_p, c_void_p, POINTER(InputText), POINTER(c_void_p), c_size_t]),
    "mtmd_input_chunks_size": (c_size_t, [c_void_p]),
    "mtmd_input_chunks_get": (c_void_p, [c_void_p, c_size_t]),
    "mtmd_input_chunk_get_type": (c_int32, [c_void_p]),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, [c_void_p]),
    "mtmd_encode_chunk": (c_int32, [c_void_p, c_void_p]),
    "mtmd_get_output_embd": (POINTER(c_float), [c_void_p]),
}
# ``mtmd_input_chunk_type``: an image, audio.
MEDIA = (1, 2)


def soft_tokens(text: Path, mmproj: Path, medium: np.ndarray, width: int) -> np.ndarray:
    """The encoder's vectors ``[tokens, width]`` of an image ``[height, width, 3]`` of bytes, or of float32 samples at 16 kHz, beside the
    decoder in ``text``."""
    model = LlamaCpp(text, 64)
    lib = model._lib
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.mtmd_log_set(ctypes.cast(model._quiet, c_void_p), None)
    context = lib.mtmd_init_from_file(str(mmproj).encode(), model._model, lib.mtmd_context_params_default())
    if not context:
        raise ValueError(f"{mmproj}: llama.cpp cannot load it")
    values = np.ascontiguousarray(medium)
    if medium.ndim == 1:
        bitmap = lib.mtmd_bitmap_init_from_audio(len(values), values.ctypes.data_as(POINTER(c_float)))
    else:
        bitmap = lib.mtmd_bitmap_init(values.shape[1], values.shape[0], values.ctypes.data)
    bitmaps = (c_void_p * 1)(bitmap)
    chunks = lib.mtmd_input_chunks_init()
    marker = InputText(lib.mtmd_default_marker(), False, True)
    if code := lib.mtmd_tokenize(context, chunks, ctypes.byref(marker), bitmaps, 1):
        raise RuntimeError(f"mtmd_tokenize returned {code}")
    for i in range(lib.mtmd_input_chunks_size(chunks)):
        chunk = lib.mtmd_input_chunks_get(chunks, i)
        if lib.mtmd_input_chunk_get_type(chunk) in MEDIA:
            if code := lib.mtmd_encode_chunk(context, chunk):
                raise RuntimeError(f"mtmd_encode_chunk returned {code}")
            shape = (lib.mtmd_input_chunk_get_n_tokens(chunk), width)
            return np.ctypeslib.as_array(lib.mtmd_get_output_embd(context), shape).copy()
    raise RuntimeError("mtmd made no chunk of the image or audio")
