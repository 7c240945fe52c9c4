"""Settings of glibc's memory allocator: large pages for the buffers of a training step on CPUs, and the return of freed memory.

XLA frees the buffers of a step, glibc returns them to the system, and the next step causes a page fault for each of some 100,000
small pages. Pages of 2 MiB are up to 500 times fewer: a step takes a quarter less time (docs/results.md, "The training step").
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def environment() -> dict[str, str]:
    """The environment in which glibc requests large pages; an existing setting is not changed."""
    tunables = os.environ.get(VARIABLE, "")
    return {
        **os.environ,
        VARIABLE: tunables if SETTING in tunables else ":".join(filter(None, (tunables, f"{SETTING}=1"))),
    }


def use_large_pages() -> None:
    """Restarts this program with large pages: glibc reads the setting only when a process starts."""
    target = environment()
    if sys.platform == "linux" and target != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], target)


def return_freed_memory() -> None:
    """Gives memory that has been freed back to the system: glibc keeps it for later, and nothing as large may come."""
    if sys.platform == "linux":
        # Other C libraries have no such function.
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
