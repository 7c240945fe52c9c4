"""Compiled programs on disk: what one process of a test run has compiled, the others read."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import jax

SETTINGS = {
    # Small programs too: there are thousands of them.
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def share_compiled() -> None:
    """Shares a folder with the workers of pytest and the processes that tests start; the first process deletes it at its end."""
    name = "JAX_COMPILATION_CACHE_DIR"
    if name not in os.environ:
        os.environ[name] = tempfile.mkdtemp(prefix="alhena-compiled-")
        atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
    for key, value in SETTINGS.items():
        os.environ[key.upper()] = str(value)
        jax.config.update(key, value)
    jax.config.update("jax_compilation_cache_dir", os.environ[name])
