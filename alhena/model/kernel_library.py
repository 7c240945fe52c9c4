"""The libraries of compiled kernels: custom calls of XLA on the CPU, built at installation where there is a C++ compiler (setup.py)."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import jax

LOG = logging.getLogger(__name__)


def load_kernels(folder: Path, symbols: Mapping[str, str]) -> ctypes.CDLL | None:
    """The library of a folder, its ``symbols`` registered by the names of their custom calls; None where it was not built of these sources."""
    paths = [folder / f"_kernel{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next(filter(Path.exists, paths), None)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        LOG.warning("%s: cannot be loaded (%s)", path, error)
        return None
    if missing := [symbol for symbol in symbols.values() if not hasattr(library, symbol)]:
        LOG.warning("%s: built from other sources, without %s; build it again with setup.py", path, ", ".join(missing))
        return None
    for target, symbol in symbols.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(library[symbol]), platform="cpu")
    return library
