"""Reads the text of a compiled program: its computations, and what each collective sends from a chip to others.

    ENTRY main { … while(body=%layers, known_trip_count 25) … all-gather-start(…) … fusion(calls=%f) … all-gather-done(…) }

alhena/planning/simulator.py plays what is read here on an ideal chip.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

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
    dtype: str
    dims: tuple[int, ...]
    near: bool  # in the chip's own fast memory, not in HBM

    @property
    def bytes(self) -> int:
        return BYTES.get(self.dtype, 0) * math.prod(self.dims)


@dataclass(frozen=True)
class Op:
    name: str
    kind: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    number: int  # of a parameter; value of a whole constant
    text: str  # what stands behind the operands

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([^\s,]+)", self.text)
        return found and found.group(1)


@dataclass(frozen=True)
class Program:
    computations: dict[str, list[Op]]
    entry: str


@dataclass(frozen=True)
class Transfer:
    """One collective of one chip: ``sent`` bytes leave it; ``whole`` is the array's size when put together."""

    kind: str
    sent: float
    whole: int
    group: int
    between_pods: bool


def _closing(text: str, start: int) -> int:
    """Place behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"HLO: no closing parenthesis in {text[start : start + 80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.finditer(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?", text)
    return tuple(
        Shape(m[1], tuple(int(n) for n in m[2].split(",") if n), "S(" in (m[3] or "") and "S(0)" not in m[3])
        for m in found
    )


def _op(line: str) -> Op:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, _, _ = rest[end:].strip().partition("(")
    start = rest.index("(", end)
    stop = _closing(rest, start)
    inside = rest[start:stop]
    number = int(inside[1:-1]) if kind in ("parameter", "constant") and re.fullmatch(r"\(\d+\)", inside) else -1
    return Op(
        name.lstrip("%"), kind, _shapes(rest[:end]), tuple(re.findall(r"%([\w.\-]+)", inside)), number, rest[stop:]
    )


def parse(text: str) -> Program:
    """The computations of a compiled module's text."""
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
        raise ValueError("HLO: no ENTRY computation; this is not the text of a compiled module")
    return Program(computations, entry)


def _iota(dims: str, order: str | None) -> np.ndarray:
    """``[dims]T(order)``: the numbers 0, 1, … laid out as ``dims``, transposed."""
    sides = [int(n) for n in dims.split(",")]
    return (
        np.arange(math.prod(sides))
        .reshape(sides)
        .transpose([int(n) for n in order.split(",")] if order else range(len(sides)))
    )


def _group(op: Op) -> list[int]:
    """Chips that take part in a collective together with the first one: HLO has four ways to write it."""
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
        places = _iota(named[2] or str(math.prod(axes.values())), named[3]).reshape(tuple(axes.values()))
        over = re.findall(r"'(\w+)'", named[4])
        return places[tuple(slice(None) if name in over else 0 for name in axes)].reshape(-1).tolist()
    raise ValueError(f"HLO: which chips take part in {op.name}? {op.text[:200]!r}")


def transfer(op: Op, chips_per_pod: int) -> Transfer | None:
    """What a collective sends from each chip, by the usual ring algorithms; None for any other operation."""
    if op.kind == "send":
        return Transfer("send", op.shapes[0].bytes, op.shapes[0].bytes, 2, True)
    kind = op.kind.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _group(op)
    n, started = len(group), op.kind != kind
    sizes = [shape.bytes for shape in op.shapes if shape.dims or not started]
    # A started collective returns its operands too, and sometimes a context: the last array is the result.
    result = max(sizes) if started else sum(sizes)
    whole = result * n if kind == "reduce-scatter" else result
    passes = {"all-reduce": 2.0 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
    return Transfer(kind, passes * whole, whole, n, len({chip // chips_per_pod for chip in group}) > 1)
