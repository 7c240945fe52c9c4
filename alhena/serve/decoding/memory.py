"""Memory for the key-value cache."""

from __future__ import annotations

import jax

from alhena.media import machine_memory

# Of the memory of the machine, or of what the accelerator has left.
SHARE = 0.25


def cache_budget() -> int:
    """Bytes that the key-value cache may take."""
    statistics = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return max(0, statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)) // 2
    return int(machine_memory() * SHARE)
