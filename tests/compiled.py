"""Compiled programs of the tests: optimization level 0, and on disk, where what one process has compiled the others read.

Level 0 halves the time of compiling, which is most of the suite's.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax

LEVEL = "--xla_backend_optimization_level"
LEVEL_0 = f"{LEVEL}=0"

SETTINGS = {
    # Small programs too: there are thousands of them.
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def share_compiled() -> None:
    """Shares a folder with the workers of pytest and the processes that tests start; the first process deletes it at its end."""
    flags, name = os.environ.get("XLA_FLAGS", ""), "JAX_COMPILATION_CACHE_DIR"
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LEVEL_0}"
    if name not in os.environ:
        os.environ[name] = tempfile.mkdtemp(prefix="alhena-compiled-")
        atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
    for key, value in SETTINGS.items():
        os.environ[key.upper()] = str(value)
        jax.config.update(key, value)
    jax.config.update("jax_compilation_cache_dir", os.environ[name])


def fully_optimized(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a process of its own, whose programs are optimized as those of users: for numbers that are equal bit by bit only then."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        flags = os.environ["XLA_FLAGS"]
        if LEVEL_0 not in flags:
            test(*args, **kwargs)
            return
        name = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        environment = os.environ | {"XLA_FLAGS": flags.replace(LEVEL_0, f"{LEVEL}=3")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", name], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

    return run
