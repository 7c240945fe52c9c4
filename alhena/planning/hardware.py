"""Accelerators by their published numbers, and what stands after ``--on``: ``v5e:16x16`` (a slice of a TPU pod), ``h100:64`` (GPUs).

Per chip: peak of bf16 matrix products, HBM and its bandwidth, what leaves the chip for its own pod (all links together, one way), and
for the network between pods. TPU: the vendor's pages "TPU v4", "v5e", "v5p", "v6e" (system architecture), and Jouppi et al. 2023 (v4);
between pods, hosts of four (v5e, v6e: eight) chips share 200 Gbit/s (data-centre network). GPU: the vendor's data sheets, SXM parts;
inside a pod is NVLink among eight, between pods one 400 Gbit/s adapter a GPU.
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
    links: float  # bytes/s out of the chip, inside a pod
    network: float  # bytes/s out of the chip, between pods
    torus: int = 0  # dimensions of the TPU's torus; 0: a GPU
    tpu_config: str = "default"  # what the compiler calls one device: a whole chip
    ring: int = 4  # a dimension of a slice as long as this closes to a ring; a shorter one is a line
    island: int = 0  # GPUs that reach one another over NVLink


GIB, GBIT = 2**30, 1e9 / 8
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.2e12, 6 * 50e9, 50 * GBIT, 3, "megacore"),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 8.1e11, 4 * 50e9, 25 * GBIT, 2, ring=16),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2.765e12, 6 * 100e9, 50 * GBIT, 3, "megacore"),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1.64e12, 4 * 100e9, 25 * GBIT, 2, ring=16),
    "a100": Chip("A100 80 GB", 312e12, 80e9, 2.039e12, 300e9, 200 * GBIT, island=8),
    "h100": Chip("H100", 989e12, 80e9, 3.35e12, 450e9, 400 * GBIT, island=8),
    "h200": Chip("H200", 989e12, 141e9, 4.8e12, 450e9, 400 * GBIT, island=8),
}


@dataclass(frozen=True)
class Machine:
    """Pods of equal slices: what a plan is for."""

    chip: Chip
    slice: tuple[int, ...]  # chips along each dimension of the torus; one number of GPUs
    pods: int
    topology: str  # as the compiler calls a slice

    @property
    def chips(self) -> int:
        return self.pods * math.prod(self.slice)

    def link_speed(self, group: int) -> float:
        """Bytes/s that leave a chip in a collective of so many chips of one pod.

        On a torus such a group lies along whole dimensions, the longest first, and uses the two links of each that closes to a ring;
        at the ends of a line, or of a part of a ring, there is one. GPUs of one island use its links, larger groups the network.
        """
        if not self.is_tpu:
            return self.chip.links if group <= self.chip.island else self.chip.network
        links, rest = 0, group
        for side in sorted(self.slice, reverse=True):
            if side > 1 and rest % side == 0:
                links, rest = links + (2 if side >= self.chip.ring else 1), rest // side
        return self.chip.links * max(links, 1) / (2 * self.chip.torus)

    def transfer_seconds(self, t: Transfer) -> float:
        """How long a collective takes that has the links to itself; what goes from all to all passes through a quarter of a ring."""
        if t.between_pods:
            return t.sent / self.chip.network
        detour = max(1.0, t.group / 4) if t.kind == "all-to-all" and self.is_tpu else 1.0
        return detour * t.sent / self.link_speed(t.group)

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus > 0


def parse_machine(on: str, pods: int = 1) -> Machine:
    """Reads ``--on``. Raises ValueError that says what can be written.

    >>> machine("v4:8x16x16", pods=2).chips, machine("h100:64").is_tpu
    (4096, False)
    """
    kind, _, size = on.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", size):
        known = ", ".join(
            name + (":4x4x4" if c.torus == 3 else ":4x4" if c.torus else ":64") for name, c in CHIPS.items()
        )
        raise ValueError(f"--on {on!r}: write a chip and its slice, such as {known}")
    slice_ = tuple(int(n) for n in size.split("x"))
    if len(slice_) != max(chip.torus, 1) or pods < 1:
        shape = f"{chip.torus} numbers" if chip.torus else "one number"
        raise ValueError(f"--on {on} --pods {pods}: a slice of {chip.name} is {shape}, and there is at least one pod")
    return Machine(chip, slice_, pods, on)
