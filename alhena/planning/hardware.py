"""Accelerators by their published specifications, and the syntax of ``--on``: ``v5e:16x16`` (a slice of a TPU pod), ``h100:64`` (GPUs).

Per chip: peak FLOP/s of bf16 matmuls, HBM and its bandwidth, bandwidth to its own pod (all links together, one direction) and to the
network between pods. TPU: the vendor's pages "TPU v4", "v5e", "v5p", "v6e" (system architecture), and Jouppi et al. 2023 (v4);
between pods, hosts of four (v5e, v6e: eight) chips share 200 Gbit/s (data center network). GPU: the vendor's data sheets, SXM parts;
NVLink joins eight, one 400 Gbit/s adapter per GPU the rest.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from alhena.planning.hlo import Transfer


@dataclass(frozen=True)
class Chip:
    name: str
    flops: float  # bf16, dense
    hbm: float  # bytes
    hbm_speed: float  # bytes/s
    links: float  # bytes/s out of the chip, within a pod
    network: float  # bytes/s out of the chip, between pods
    torus: int = 0  # dimensions of the TPU's torus; 0 for a GPU
    tpu_config: str = "default"  # the compiler's chip_config_name for one device per chip
    ring: int = 4  # dimensions of a slice of this length or more wrap around; shorter ones do not
    nvlink: int = 0  # GPUs in one NVLink domain


GIB, GBIT = 2**30, 1e9 / 8
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.2e12, 6 * 50e9, 50 * GBIT, 3, "megacore"),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 8.1e11, 4 * 50e9, 25 * GBIT, 2, ring=16),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2.765e12, 6 * 100e9, 50 * GBIT, 3, "megacore"),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1.64e12, 4 * 100e9, 25 * GBIT, 2, ring=16),
    "a100": Chip("A100 80 GB", 312e12, 80e9, 2.039e12, 300e9, 200 * GBIT, nvlink=8),
    "h100": Chip("H100", 989e12, 80e9, 3.35e12, 450e9, 400 * GBIT, nvlink=8),
    "h200": Chip("H200", 989e12, 141e9, 4.8e12, 450e9, 400 * GBIT, nvlink=8),
}


@dataclass(frozen=True)
class Machine:
    """Pods of equal slices of one chip."""

    chip: Chip
    slice: tuple[int, ...]  # chips along each dimension of the torus; for GPUs one number
    pods: int
    topology: str  # the compiler's name of a slice

    @property
    def chips(self) -> int:
        return self.pods * math.prod(self.slice)

    def link_speed(self, group: int) -> float:
        """Bytes/s out of a chip in a collective over ``group`` chips of one pod.

        On a torus such a group covers complete dimensions, the longest first. Each that wraps around has two links per chip; one that
        does not, or a part of a dimension, has one. GPUs of one NVLink domain use NVLink, larger groups the network.
        """
        if not self.is_tpu:
            return self.chip.links if group <= self.chip.nvlink else self.chip.network
        links, remaining = 0, group
        for side in sorted(self.slice, reverse=True):
            if side > 1 and remaining % side == 0:
                links, remaining = links + (2 if side >= self.chip.ring else 1), remaining // side
        return self.chip.links * max(links, 1) / (2 * self.chip.torus)

    def transfer_seconds(self, t: Transfer) -> float:
        """Time of a collective that does not share its links. On a ring, all-to-all traffic passes through group / 4 links on average."""
        if t.between_pods:
            return t.sent / self.chip.network
        hops = max(1.0, t.group / 4) if t.kind == "all-to-all" and self.is_tpu else 1.0
        return hops * t.sent / self.link_speed(t.group)

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus > 0


def parse_machine(on: str, pods: int = 1) -> Machine:
    """Parses ``--on``. Raises ValueError with examples of the syntax.

    >>> parse_machine("v4:8x16x16", pods=2).chips, parse_machine("h100:64").is_tpu
    (4096, False)
    """
    kind, _, size = on.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", size):
        known = ", ".join(
            name + (":4x4x4" if c.torus == 3 else ":4x4" if c.torus else ":64") for name, c in CHIPS.items()
        )
        raise ValueError(f"--on {on!r}: give a chip and its slice, such as {known}")
    slice_ = tuple(int(n) for n in size.split("x"))
    if len(slice_) != max(chip.torus, 1) or pods < 1:
        numbers = f"{chip.torus} numbers" if chip.torus else "one number"
        raise ValueError(f"--on {on} --pods {pods}: a slice of {chip.name} is {numbers}, and pods are at least 1")
    return Machine(chip, slice_, pods, on)
