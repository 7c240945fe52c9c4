"""Fingerprints of training steps, exact to the bit; ``alhena replay`` compares them.

    fingerprints.jsonl  {"step": 0, "machine": {"jax": "0.10.2", "device": "cpu", …}}
                        {"step": 1, "batch": "5eb34306", "loss": "40d9a1f3", "gradient_norm": "3f8c0e11", "parameters": …, "moments": …}

Loss and gradient norm are stored as the bits of their float32; batch, parameters and the optimizer's moments as checksums. These are
computed on the device by separate programs, so that the results of the training step are the same with and without them.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from alhena.files import add_line, read_lines, truncate_log
from alhena.recovery.checksum import checksums, combined
from alhena.shapes import Array, Float, UInt32

FILE = "fingerprints.jsonl"


@dataclass(frozen=True)
class Fingerprint:
    """Of one step. Fields are in the order in which a step computes them: the first that differs names the part at fault."""

    step: int
    batch: str
    loss: str
    gradient_norm: str
    parameters: str
    moments: str

    def first_difference(self, other: Fingerprint) -> str | None:
        """The name of the first field in which two fingerprints of a step differ."""
        names = [f.name for f in fields(self)]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)


@runtime_checkable
class TrainingState(Protocol):
    """The state after a step; a pytree whose leaves are in this order, followed by others."""

    @property
    def step(self) -> Any: ...
    @property
    def params(self) -> Any: ...
    @property
    def optimizer(self) -> Any: ...


@dataclass(frozen=True)
class PendingFingerprint:
    """A fingerprint as arrays that the device may still compute."""

    step: int
    batch: UInt32[Array, " batch"]  # checksums of its arrays
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    state: UInt32[
        Array, " leaves"
    ]  # checksums of the step count, the parameters, the optimizer's moments, and the rest
    ends: np.ndarray  # indices where the checksums of the first three end

    def read(self) -> Fingerprint:
        """Waits for the device."""
        _, parameters, moments, _ = map(combined, np.split(np.asarray(self.state), self.ends))
        return Fingerprint(
            self.step, combined(self.batch), bits(self.loss), bits(self.gradient_norm), parameters, moments
        )


def take_fingerprint(
    step: int,
    batch_checksums: UInt32[Array, " batch"],
    state: TrainingState,
    loss: Float[Array, ""],
    gradient_norm: Float[Array, ""],
) -> PendingFingerprint:
    """Fingerprint of a step: of its batch, its loss and gradient norm, and the state after it. Does not wait for the device."""
    ends = np.cumsum([len(jax.tree.leaves(part)) for part in (state.step, state.params, state.optimizer)])
    return PendingFingerprint(step, batch_checksums, loss, gradient_norm, checksums(state), ends)


def bits(value: Float[Array, ""] | float | np.float32) -> str:
    """The bits of a float32, in hexadecimal digits.

    >>> bits(np.float32(1.5)), float_of_bits("3fc00000")
    ('3fc00000', 1.5)
    """
    return f"{np.asarray(value, np.float32).view(np.uint32):08x}"


def float_of_bits(digits: str) -> float:
    return float(np.uint32(int(digits, 16)).view(np.float32))


def machine_description() -> dict[str, str | int]:
    """What the last bits of floating-point sums depend on."""
    device = jax.devices()[0].device_kind
    return {
        "jax": jax.__version__,
        "device": device,
        "devices": jax.device_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
    }


class Fingerprints:
    """Appends to a folder's log; lines after ``step`` are dropped first."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / FILE
        self.truncate(step)
        add_line(self._path, {"step": step, "machine": machine_description()})

    def truncate(self, step: int) -> None:
        truncate_log(self._path, step)

    def write(self, fingerprint: Fingerprint) -> None:
        add_line(self._path, asdict(fingerprint))


def read_fingerprints(folder: Path) -> tuple[dict[int, Fingerprint], dict[str, Any]]:
    """Fingerprints by step, and the machine of the last. Raises ValueError when there are none, or a line is invalid."""
    lines, fingerprints, machines = read_lines(folder / FILE, step=int), {}, []
    for number, line in enumerate(lines, 1):
        if line.keys() == {"step", "machine"} and isinstance(line["machine"], dict):
            machines.append(line["machine"])
        elif line.keys() == {f.name for f in fields(Fingerprint)} and all(
            _is_hex_word(line[key]) for key in line.keys() - {"step"}
        ):
            fingerprints[line["step"]] = Fingerprint(**line)
        else:
            raise ValueError(
                f"{folder / FILE}, line {number}: neither the fingerprint of a step nor a machine; delete the line"
            )
    if not fingerprints:
        raise ValueError(f"{folder / FILE}: no fingerprints; is {folder.parent} a run folder that has been trained?")
    return fingerprints, machines[-1] if machines else {}


def _is_hex_word(value: object) -> bool:
    """Whether a value is a 32-bit word in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{8}", value) is not None
