"""Plays a compiled program on an ideal chip: what it multiplies, moves through its memory, sends to other chips, and how long that takes.

The compiler's own totals count the body of a loop once, so the text is walked instead: a loop's body as often as it runs, of a branch the
dearest side. Compiled text is in the order of execution, and a collective is started at one place and awaited at another, so the same
walk also tells the time: every operation takes the longer of its products at peak and its bytes at full bandwidth, links carry one
transfer at a time, and only what is awaited before it has arrived costs time.
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
    "copy-start", "copy-done", "slice-start", "slice-done",  # the compiler fetches ahead, behind other operations
}  # fmt: skip
CHAIN = re.compile(r'chain_id="(\d+)"')


@dataclass
class Totals:
    """Of one step and one chip."""

    flops: float = 0.0
    hbm: float = 0.0
    seconds: float = 0.0  # played on an ideal chip
    busy: float = 0.0  # the time that products and memory take
    links: float = 0.0  # the time that transfers inside the pod take, overlapped or not
    network: float = 0.0  # and those between pods
    within_pod: dict[str, float] = field(default_factory=dict)  # bytes sent to chips of the same pod, by kind
    between_pods: dict[str, float] = field(default_factory=dict)  # to other pods
    largest: dict[str, int] = field(default_factory=dict)  # the largest array that each kind puts together

    def add(self, other: Totals, times: float = 1) -> None:
        for name in ("flops", "hbm", "seconds", "busy", "links", "network"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("inside", "between"):
            mine = getattr(self, name)
            for kind, sent in getattr(other, name).items():
                mine[kind] = mine.get(kind, 0.0) + times * sent
        for kind, size in other.largest.items():
            self.largest[kind] = max(size, self.largest.get(kind, 0))


@dataclass(frozen=True)
class Speeds:
    """Of one chip, per second; ``transfer`` gives the seconds that a transfer takes."""

    flops: float
    hbm: float
    transfer: Callable[[Transfer], float]


def _convolution(op: Op, lhs: Shape, rhs: Shape) -> float:
    """Products of a convolution, ours being matrix products in disguise: batch dimensions appear as dilated windows."""
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
        low, stride, spread, apart = (
            get("pad", "0_0").split("_")[0],
            get("stride", 1),
            get("lhs_dilate", 1),
            get("rhs_dilate", 1),
        )
        place = (
            np.arange(out.dims[labels[3].index(str(i))])[:, None] * int(stride)
            + np.arange(kernel) * int(apart)
            - int(low)
        )
        total *= np.sum((place >= 0) & (place <= (size - 1) * int(spread)) & (place % int(spread) == 0))
    return float(total)


def _kernel(op: Op, symbols: dict[str, Op], visited: float) -> float:
    """Products of the splash attention kernels: two passes over the scores forward, four and three backward."""
    passes = {"fwd": 2, "dkv": 4, "dq": 3}
    found = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", op.name)
    query = next(
        (s for o in op.operands if o in symbols for s in symbols[o].shapes if len(s.dims) > 2 and s.dtype == "bf16"),
        None,
    )
    if found is None or query is None:
        return 0.0
    return passes[found[1]] * 2.0 * math.prod(query.dims) * query.dims[-2] * visited


@dataclass
class Simulator:
    """Plays a program on one ideal chip; ``visited`` is the share of the scores that attention kernels compute."""

    program: Program
    speeds: Speeds
    chips_per_pod: int
    computed_share: float = 1.0
    known: dict[str, Totals] = field(default_factory=dict)

    def total(self) -> Totals:
        return self.simulate(self.program.entry)

    def _called(self, op: Op) -> dict[str, Op]:
        name = op.attribute("calls") or op.attribute("to_apply")
        return {o.name: o for o in self.program.computations[name]} if name else {}

    def flops(self, op: Op, symbols: dict[str, Op]) -> float:
        """Products of one operation, those inside a fusion included."""
        if op.kind == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.text)
            assert axes, op.text
            lhs = symbols[op.operands[0]].shapes[0].dims
            return 2.0 * math.prod(op.shapes[0].dims) * math.prod(lhs[int(i)] for i in axes[1].split(",") if i)
        if op.kind == "convolution":
            return _convolution(op, *(symbols[o].shapes[0] for o in op.operands[:2]))
        if op.kind == "custom-call":
            return _kernel(op, symbols, self.computed_share)
        inside = self._called(op) if op.kind in ("fusion", "async-start") else {}
        return sum(self.flops(o, inside) for o in inside.values())

    def hbm(self, op: Op, symbols: dict[str, Op]) -> float:
        """Bytes that one operation reads from and writes to HBM; of a sliced array, the slice."""
        far = lambda shapes: float(sum(s.bytes for s in shapes if not s.near))  # noqa: E731
        if self._chain(op)[1]:
            return 0.0  # at the ends of a chain only the links work
        inside = self._called(op) if op.kind == "fusion" else {op.name: op}
        parameters = {o.number: o.name for o in inside.values() if o.kind == "parameter"}
        # What a fusion passes on as it is, a chain's collective too, it neither reads nor writes.
        carried = {o.name for o in inside.values() if o.kind == "parameter" or CHAIN.search(o.text)}
        *_, root = inside.values()
        results = [o for o in root.operands if o not in carried] if root.kind == "tuple" else [root.name]
        written = sum(far(inside[o].shapes) for o in results)
        read = 0.0
        for i, operand in enumerate(op.operands):
            shapes = symbols[operand].shapes if operand in symbols else ()
            name = parameters.get(i, operand) if op.kind == "fusion" else operand
            users = [o for o in inside.values() if name in o.operands and o.name not in carried and o.kind != "tuple"]
            if users and all(o.kind in ("dynamic-slice", "slice", "gather") and o.operands[0] == name for o in users):
                read += sum(far(o.shapes) for o in users) if far(shapes) else 0.0
            elif users and all(o.kind == "dynamic-update-slice" and o.operands[0] == name for o in users):
                update = sum(
                    far(inside[o.operands[1]].shapes) if o.operands[1] in inside else far(symbols[o.operands[1]].shapes)
                    for o in users
                )
                written -= max(far(shapes) - update, 0.0)
            elif users:
                read += far(shapes)
        return read + max(written, 0.0)

    def _transfers(self, op: Op) -> list[Transfer]:
        """Collectives that an operation is, or that are wrapped in it."""
        own = transfer(op, self.chips_per_pod)
        if own is not None:
            return [own]
        name, end = self._chain(op)
        if name and end != "Start":
            return []
        inside = self._called(op).values() if op.kind in ("fusion", "async-start", "call") else ()
        found = [t for o in inside for t in self._transfers(o)]
        if (op.attribute("calls") or "").startswith(
            "all-reduce-scatter"
        ):  # so the TPU's compiler writes a reduce-scatter
            found = [replace(t, kind="reduce-scatter", sent=t.sent / 2) for t in found]
        return found

    def _chain(self, op: Op) -> tuple[str, str]:
        """The TPU's compiler hides a collective behind products as a chain of fusions that all name it: its number, and "Start" or
        "Done" for its ends."""
        inside = self._called(op).values() if op.kind == "fusion" else ()
        named = [m[1] for o in inside if (m := CHAIN.search(o.text))]
        ends = [m[1] for o in inside if (m := re.search(r'custom_call_target="AsyncCollective(\w+)"', o.text))]
        return named[0] if named else "", ends[0] if ends else ""

    def _trips(self, op: Op) -> int:
        """How often a loop runs: as the compiler says, or the bound its counter is compared with (JAX counts from 0)."""
        said = re.search(r"known_trip_count\W+n\W+(\d+)", op.text)
        if said:
            return int(said[1])
        condition = {o.name: o for o in self.program.computations[str(op.attribute("condition"))]}
        last = next(o for o in reversed(condition.values()) if o.kind in ("compare", "fusion"))
        bounds = [condition[o].number for o in last.operands if condition[o].kind == "constant"]
        if len(bounds) != 1:
            raise ValueError(f"HLO: how often does the loop {op.name} run? Its condition is {last}")
        return bounds[0]

    def simulate(self, name: str) -> Totals:
        """One computation, operation by operation, in the order that the compiler gave them."""
        if name not in self.known:
            self.known[name] = self._simulate(self.program.computations[name])
        return self.known[name]

    def _simulate(self, ops: list[Op]) -> Totals:
        out, symbols = Totals(), {op.name: op for op in ops}
        arrives: dict[str, float] = {}  # when what was started is there
        free = {False: 0.0, True: 0.0}  # when the links inside a pod, and the network between pods, are free again
        for op in ops:
            if op.kind in FREE or op.kind == "recv":
                continue
            chain, end = self._chain(op)
            if op.kind == "while":
                out.add(self.simulate(str(op.attribute("body"))), self._trips(op))
            elif op.kind == "conditional":
                out.add(max((self.simulate(n) for n in _branches(op)), key=lambda t: t.seconds))
            elif op.kind.endswith("-done") or end == "Done":
                awaited = arrives.get(chain or op.operands[0], free[True] if op.kind == "recv-done" else 0.0)
                out.seconds = max(out.seconds, awaited)
            else:
                transfers = self._transfers(op)
                for t in transfers:
                    took = self.speeds.transfer(t)
                    _count(out, t, took)
                    free[t.between_pods] = max(free[t.between_pods], out.seconds) + took
                flops, moved = self.flops(op, symbols), self.hbm(op, symbols)
                took = max(flops / self.speeds.flops, moved / self.speeds.hbm)
                out.flops, out.hbm = out.flops + flops, out.hbm + moved
                out.seconds, out.busy = out.seconds + took, out.busy + took
                if transfers and (op.kind.endswith("-start") or op.kind == "send" or end == "Start"):
                    arrives[chain or op.name] = free[transfers[0].between_pods]
                elif transfers:
                    out.seconds = max(out.seconds, *(free[t.between_pods] for t in transfers))
        out.seconds = max(out.seconds, *free.values())
        return out


def _branches(op: Op) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", op.text)
    if several:
        return [name.strip(" %") for name in several[1].split(",")]
    return [str(op.attribute(side)) for side in ("true_computation", "false_computation")]


def _count(out: Totals, t: Transfer, took: float) -> None:
    where = out.between_pods if t.between_pods else out.within_pod
    if t.between_pods:
        out.network += took
    else:
        out.links += took
    where[t.kind] = where.get(t.kind, 0.0) + t.sent
    out.largest[t.kind] = max(t.whole, out.largest.get(t.kind, 0))
