"""Limits that the configurations of all modules share."""

from __future__ import annotations

# Bounds of widths, hidden sizes and numbers of heads.
SIZES = (1, 2**20)
# Bounds of numbers of layers.
DEPTHS = (1, 2**12)


def check_divides(settings: object, divisor: str, dividend: str) -> None:
    """Raises ValueError when one field does not divide another."""
    divided, by = getattr(settings, dividend), getattr(settings, divisor)
    if divided % by:
        raise ValueError(f"{type(settings).__name__}.{divisor} is {by}; it must divide {dividend}, {divided}")
