"""Parser of compiled HLO text: computations, and the bytes that each collective sends.

    ENTRY main { … while(body=%layers, known_trip_count 25) … all-gather-start(…) … fusion(calls=%f) … all-gather-done(…) }

alhena/planning/simulator.py simulates the parsed program.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from alhena.shapes import Int

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Shape:
    """Type of one array."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in on-chip memory (memory space S(1), …), not in HBM

    @property
    def bytes(self) -> int:
        return BYTES.get(self.dtype, 0) * math.prod(self.dims)


@dataclass(frozen=True)
class Op:
    """One instruction of a computation."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    number: int  # index of a parameter, value of an integer constant; else -1
    text: str  # everything after the operands

    def attribute(self, name: str) -> str | None:
        """The value of ``name=value`` after the operands."""
        match = re.search(rf"\b{name}=%?([^\s,]+)", self.text)
        return match and match.group(1)


@dataclass(frozen=True)
class Program:
    """The computations of a module, by name."""

    computations: dict[str, list[Op]]
    entry: str


@dataclass(frozen=True)
class Transfer:
    """One collective of one chip: ``sent`` bytes leave it; ``full`` is the size of the unsharded array."""

    kind: str
    sent: float
    full: int
    group: int
    between_pods: bool


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"HLO: no closing parenthesis in {text[start : start + 80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    matches = re.finditer(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?", text)
    return tuple(
        Shape(m[1], tuple(int(n) for n in m[2].split(",") if n), "S(" in (m[3] or "") and "S(0)" not in m[3])
        for m in matches
    )


def _op(line: str) -> Op:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    stop = _closing(rest, start)
    operands = rest[start:stop]
    number = int(operands[1:-1]) if kind in ("parameter", "constant") and re.fullmatch(r"\(\d+\)", operands) else -1
    return Op(
        name.lstrip("%"), kind, _shapes(rest[:end]), tuple(re.findall(r"%([\w.\-]+)", operands)), number, rest[stop:]
    )


def parse(text: str) -> Program:
    """Parses the text of a compiled module. Raises ValueError when it has no entry computation."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and re.match(r"\s+(ROOT )?%[\w.\-]+ = ", line):
            current.append(_op(line))
    if not entry:
        raise ValueError("HLO: no ENTRY computation; pass the text of a compiled module")
    return Program(computations, entry)


def _iota(dims: str, order: str | None) -> Int[np.ndarray, ...]:
    """``[dims]T(order)``: the integers 0, 1, … reshaped to ``dims`` and transposed."""
    sides = [int(n) for n in dims.split(",")]
    return (
        np.arange(math.prod(sides))
        .reshape(sides)
        .transpose([int(n) for n in order.split(",")] if order else range(len(sides)))
    )


def _group(op: Op) -> list[int]:
    """Chips of the first replica group of a collective, in any of HLO's four notations."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", op.text)
    if pairs:
        return [int(pairs[1]), int(pairs[2])]
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", op.text)
    if listed:
        return [int(n) for n in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", op.text)
    if iota:
        return _iota(iota[2], iota[3]).reshape(-1, int(iota[1]))[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", op.text
    )
    if named:
        axes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        chips = _iota(named[2] or str(math.prod(axes.values())), named[3]).reshape(tuple(axes.values()))
        axes_used = re.findall(r"'(\w+)'", named[4])
        return chips[tuple(slice(None) if name in axes_used else 0 for name in axes)].reshape(-1).tolist()
    raise ValueError(f"HLO: the replica groups of {op.name} are not understood: {op.text[:200]!r}")


def transfer(op: Op, chips_per_pod: int) -> Transfer | None:
    """The bytes that a collective sends per chip with ring algorithms; None for any other operation."""
    if op.kind == "send":
        return Transfer("send", op.shapes[0].bytes, op.shapes[0].bytes, 2, True)
    kind = op.kind.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _group(op)
    n, is_async = len(group), op.kind != kind
    sizes = [shape.bytes for shape in op.shapes if shape.dims or not is_async]
    # An asynchronous start returns its operands too, and sometimes a context: the largest array is the result.
    result = max(sizes) if is_async else sum(sizes)
    full = result * n if kind == "reduce-scatter" else result
    passes = {"all-reduce": 2.0 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
    return Transfer(kind, passes * full, full, n, len({chip // chips_per_pod for chip in group}) > 1)
