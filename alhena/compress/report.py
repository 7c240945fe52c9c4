"""The report of a quantization: which tensor has which type, and how much of the loss each step costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from alhena.model.quantized.types import TensorType, summary

# Of a model: nats by modality and by source (alhena.train.validation.losses).
Losses = Mapping[str, Mapping[str, float]]
FULL, ROUNDED, ALL = "float", "rounded", "all"
FILE = "report.json"


def gap_closed(losses: Mapping[str, Losses]) -> dict[str, float]:
    """The share of the gap between the rounded and the full-precision model that each later step closes, over all targets."""
    nats = {name: of_model["modality"][ALL] for name, of_model in losses.items()}
    gap = nats[ROUNDED] - nats[FULL]
    later = [name for name in nats if name not in (FULL, ROUNDED)]
    return {name: round((nats[ROUNDED] - nats[name]) / gap, 3) for name in later} if gap > 0 else {}


def types_table(table: Mapping[str, TensorType]) -> Table:
    """The types of all tensors, for people."""
    out = Table("tensor", "type", "tensors", "bytes", "note", title="types of the tensors")
    for name, kind, count, size, reason in summary(table):
        out.add_row(name, kind, str(count), f"{size:,}", reason)
    return out


def losses_table(losses: Mapping[str, Losses]) -> Table:
    """Nats of held-out targets by modality, one row a step, with its distance from full precision."""
    full = losses[FULL]["modality"]
    out = Table("model", *full, "share of the gap closed", title="nats per token of held-out examples")
    closed = gap_closed(losses)
    for name, of_model in losses.items():
        cells = [
            f"{nats:.4f}" if name == FULL else f"{nats:.4f} ({nats - full[modality]:+.4f})"
            for modality, nats in of_model["modality"].items()
        ]
        out.add_row(name, *cells, f"{closed[name]:.0%}" if name in closed else "")
    return out


def print_report(table: Mapping[str, TensorType], losses: Mapping[str, Losses], console: Console) -> None:
    """Prints both tables."""
    console.print(types_table(table))
    if losses:
        console.print(losses_table(losses))


def facts(table: Mapping[str, TensorType], losses: Mapping[str, Losses]) -> dict[str, Any]:
    """The same as JSON."""
    rows = [dict(zip(("tensor", "type", "tensors", "bytes", "reason"), row, strict=True)) for row in summary(table)]
    return {"types": rows, "losses": losses, "gap_closed": gap_closed(losses) if losses else {}}
