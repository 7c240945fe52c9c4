"""Simulates a compiled program on an ideal chip: FLOPs, HBM traffic, bytes sent to other chips, and time.

The compiler's cost analysis counts the body of a loop once. Here the body counts once per iteration, and a conditional as its most
expensive branch. HLO text is in order of execution, and asynchronous collectives have a start and a done operation, so the simulation
also gives the time: each operation takes the longer of its FLOPs at peak and its bytes at full bandwidth, links carry one transfer at
a time, and a done operation waits for its transfer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from alhena.planning.hlo import Op, Program, Shape, Transfer, transfer

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id", "replica-id",
    "opt-barrier", "add-dependency",
    # Prefetches, which overlap with other operations.
    "copy-start", "copy-done", "slice-start", "slice-done",
}  # fmt: skip
CHAIN = re.compile(r'chain_id="(\d+)"')


@dataclass
class Totals:
    """Totals of one step on one chip."""

    flops: float = 0.0
    hbm: float = 0.0  # bytes read and written
    seconds: float = 0.0  # time of the step on an ideal chip
    busy: float = 0.0  # seconds of compute and memory
    links: float = 0.0  # seconds of transfers within the pod, overlapped or not
    network: float = 0.0  # and of those between pods
    within_pod: dict[str, float] = field(default_factory=dict)  # bytes sent to chips of the same pod, by collective
    between_pods: dict[str, float] = field(default_factory=dict)  # to other pods
    largest: dict[str, int] = field(default_factory=dict)  # bytes of the largest unsharded array, by collective

    def add(self, other: Totals, times: float = 1) -> None:
        """Adds ``other``, ``times`` over."""
        for name in ("flops", "hbm", "seconds", "busy", "links", "network"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("within_pod", "between_pods"):
            totals = getattr(self, name)
            for kind, sent in getattr(other, name).items():
                totals[kind] = totals.get(kind, 0.0) + times * sent
        for kind, size in other.largest.items():
            self.largest[kind] = max(size, self.largest.get(kind, 0))


@dataclass(frozen=True)
class Speeds:
    """FLOP/s and bytes/s of one chip; ``transfer`` returns the seconds of a transfer."""

    flops: float
    hbm: float
    transfer: Callable[[Transfer], float]


def _convolution(op: Op, lhs: Shape, rhs: Shape) -> float:
    """FLOPs of a convolution. The TPU compiler writes matmuls as convolutions, with batch dimensions as dilated windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text)
    assert labels, op.text
    window = {
        name: value.split("x")
        for name, value in re.findall(r"(\w+)=([\dx_\-]+)", op.text.split("window={")[-1].split("}")[0])
    }
    out, total = op.shapes[0], 2.0 * rhs.dims[labels[2].index("i")]
    total *= out.dims[labels[3].index("b")] * out.dims[labels[3].index("f")]
    for i in range(len(labels[2]) - 2):
        size, kernel = lhs.dims[labels[1].index(str(i))], rhs.dims[labels[2].index(str(i))]
        get = lambda name, default, i=i: window[name][i] if name in window else default  # noqa: E731
        low, stride, lhs_dilation, rhs_dilation = (
            get("pad", "0_0").split("_")[0],
            get("stride", 1),
            get("lhs_dilate", 1),
            get("rhs_dilate", 1),
        )
        index = (
            np.arange(out.dims[labels[3].index(str(i))])[:, None] * int(stride)
            + np.arange(kernel) * int(rhs_dilation)
            - int(low)
        )
        total *= np.sum((index >= 0) & (index <= (size - 1) * int(lhs_dilation)) & (index % int(lhs_dilation) == 0))
    return float(total)


def _attention_kernel(op: Op, symbols: dict[str, Op], computed_fraction: float) -> float:
    """FLOPs of the splash attention kernels: two matmuls over the scores forward, four and three backward."""
    matmuls = {"fwd": 2, "dkv": 4, "dq": 3}
    match = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", op.name)
    query = next(
        (s for o in op.operands if o in symbols for s in symbols[o].shapes if len(s.dims) > 2 and s.dtype == "bf16"),
        None,
    )
    if match is None or query is None:
        return 0.0
    return matmuls[match[1]] * 2.0 * math.prod(query.dims) * query.dims[-2] * computed_fraction


@dataclass
class Simulator:
    """Simulates a program on one ideal chip. Attention kernels compute ``computed_fraction`` of their scores."""

    program: Program
    speeds: Speeds
    chips_per_pod: int
    computed_fraction: float = 1.0
    simulated: dict[str, Totals] = field(default_factory=dict)

    def total(self) -> Totals:
        """Totals of the entry computation."""
        return self.simulate(self.program.entry)

    def _called(self, op: Op) -> dict[str, Op]:
        name = op.attribute("calls") or op.attribute("to_apply")
        return {o.name: o for o in self.program.computations[name]} if name else {}

    def flops(self, op: Op, symbols: dict[str, Op]) -> float:
        """FLOPs of one operation, including the operations of a fusion."""
        if op.kind == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.text)
            assert axes, op.text
            lhs = symbols[op.operands[0]].shapes[0].dims
            return 2.0 * math.prod(op.shapes[0].dims) * math.prod(lhs[int(i)] for i in axes[1].split(",") if i)
        if op.kind == "convolution":
            return _convolution(op, *(symbols[o].shapes[0] for o in op.operands[:2]))
        if op.kind == "custom-call":
            return _attention_kernel(op, symbols, self.computed_fraction)
        called = self._called(op) if op.kind in ("fusion", "async-start") else {}
        return sum(self.flops(o, called) for o in called.values())

    def hbm(self, op: Op, symbols: dict[str, Op]) -> float:
        """Bytes that one operation reads from and writes to HBM. Of a sliced array only the slice counts."""
        hbm_bytes = lambda shapes: float(sum(s.bytes for s in shapes if not s.on_chip))  # noqa: E731
        # The ends of a chain of fusions only start and await a transfer.
        if self._chain(op)[1]:
            return 0.0
        called = self._called(op) if op.kind == "fusion" else {op.name: op}
        parameters = {o.number: o.name for o in called.values() if o.kind == "parameter"}
        # Values that a fusion passes through, such as a chain's collective, are neither read nor written.
        passed_through = {o.name for o in called.values() if o.kind == "parameter" or CHAIN.search(o.text)}
        *_, root = called.values()
        results = [o for o in root.operands if o not in passed_through] if root.kind == "tuple" else [root.name]
        written = sum(hbm_bytes(called[o].shapes) for o in results)
        read = 0.0
        for i, operand in enumerate(op.operands):
            shapes = symbols[operand].shapes if operand in symbols else ()
            name = parameters.get(i, operand) if op.kind == "fusion" else operand
            users = [
                o for o in called.values() if name in o.operands and o.name not in passed_through and o.kind != "tuple"
            ]
            if users and all(o.kind in ("dynamic-slice", "slice", "gather") and o.operands[0] == name for o in users):
                read += sum(hbm_bytes(o.shapes) for o in users) if hbm_bytes(shapes) else 0.0
            elif users and all(o.kind == "dynamic-update-slice" and o.operands[0] == name for o in users):
                updates = [called.get(o.operands[1]) or symbols[o.operands[1]] for o in users]
                written -= max(hbm_bytes(shapes) - sum(hbm_bytes(update.shapes) for update in updates), 0.0)
            elif users:
                read += hbm_bytes(shapes)
        return read + max(written, 0.0)

    def _transfers(self, op: Op) -> list[Transfer]:
        """The collective that an operation is, or those in the computation that it calls."""
        collective = transfer(op, self.chips_per_pod)
        if collective is not None:
            return [collective]
        name, end = self._chain(op)
        if name and end != "Start":
            return []
        called = self._called(op).values() if op.kind in ("fusion", "async-start", "call") else ()
        transfers = [t for o in called for t in self._transfers(o)]
        # The TPU compiler writes a reduce-scatter as a fusion of this name.
        if (op.attribute("calls") or "").startswith("all-reduce-scatter"):
            transfers = [replace(t, kind="reduce-scatter", sent=t.sent / 2) for t in transfers]
        return transfers

    def _chain(self, op: Op) -> tuple[str, str]:
        """Identifier of the chain that a fusion is part of, and "Start" or "Done" at its ends; else empty strings.

        The TPU compiler overlaps a collective with compute as a chain of fusions that all contain it.
        """
        called = self._called(op).values() if op.kind == "fusion" else ()
        chains = [m[1] for o in called if (m := CHAIN.search(o.text))]
        ends = [m[1] for o in called if (m := re.search(r'custom_call_target="AsyncCollective(\w+)"', o.text))]
        return chains[0] if chains else "", ends[0] if ends else ""

    def _trips(self, op: Op) -> int:
        """Iterations of a loop: the compiler's known_trip_count, or the bound of its counter (JAX counts from 0)."""
        trip_count = re.search(r"known_trip_count\W+n\W+(\d+)", op.text)
        if trip_count:
            return int(trip_count[1])
        condition = {o.name: o for o in self.program.computations[str(op.attribute("condition"))]}
        comparison = next(o for o in reversed(condition.values()) if o.kind in ("compare", "fusion"))
        bounds = [condition[o].number for o in comparison.operands if condition[o].kind == "constant"]
        if len(bounds) != 1:
            raise ValueError(f"HLO: the trip count of the loop {op.name} is unknown; its condition is {comparison}")
        return bounds[0]

    def simulate(self, name: str) -> Totals:
        """Totals of one computation, operation by operation in the compiler's order."""
        if name not in self.simulated:
            self.simulated[name] = self._simulate(self.program.computations[name])
        return self.simulated[name]

    def _simulate(self, ops: list[Op]) -> Totals:
        out, symbols = Totals(), {op.name: op for op in ops}
        # When each started transfer arrives; when the links within a pod (False) and the network between pods (True) are free.
        arrival: dict[str, float] = {}
        free = {False: 0.0, True: 0.0}
        for op in ops:
            if op.kind in FREE or op.kind == "recv":
                continue
            chain, end = self._chain(op)
            if op.kind == "while":
                out.add(self.simulate(str(op.attribute("body"))), self._trips(op))
            elif op.kind == "conditional":
                out.add(max((self.simulate(n) for n in _branches(op)), key=lambda t: t.seconds))
            elif op.kind.endswith("-done") or end == "Done":
                done = arrival.get(chain or op.operands[0], free[True] if op.kind == "recv-done" else 0.0)
                out.seconds = max(out.seconds, done)
            else:
                transfers = self._transfers(op)
                for t in transfers:
                    seconds = self.speeds.transfer(t)
                    _add_transfer(out, t, seconds)
                    free[t.between_pods] = max(free[t.between_pods], out.seconds) + seconds
                flops, moved = self.flops(op, symbols), self.hbm(op, symbols)
                seconds = max(flops / self.speeds.flops, moved / self.speeds.hbm)
                out.flops, out.hbm = out.flops + flops, out.hbm + moved
                out.seconds, out.busy = out.seconds + seconds, out.busy + seconds
                if transfers and (op.kind.endswith("-start") or op.kind == "send" or end == "Start"):
                    arrival[chain or op.name] = free[transfers[0].between_pods]
                elif transfers:
                    out.seconds = max(out.seconds, *(free[t.between_pods] for t in transfers))
        out.seconds = max(out.seconds, *free.values())
        return out


def _branches(op: Op) -> list[str]:
    """The computations of a conditional."""
    branches = re.search(r"branch_computations=\{([^}]*)\}", op.text)
    if branches:
        return [name.strip(" %") for name in branches[1].split(",")]
    return [str(op.attribute(branch)) for branch in ("true_computation", "false_computation")]


def _add_transfer(out: Totals, t: Transfer, seconds: float) -> None:
    sent = out.between_pods if t.between_pods else out.within_pod
    if t.between_pods:
        out.network += seconds
    else:
        out.links += seconds
    sent[t.kind] = sent.get(t.kind, 0.0) + t.sent
    out.largest[t.kind] = max(t.full, out.largest.get(t.kind, 0))
