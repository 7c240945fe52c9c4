"""A fingerprint of every training step, to the bit: what a replay compares (``alhena replay``).

    fingerprints.jsonl  {"step": 0, "machine": {"jax": "0.10.2", "device": "cpu", …}}
                        {"step": 1, "batch": "5eb34306", "loss": "40d9a1f3", "gradient_norm": "3f8c0e11", "parameters": …, "moments": …}

Loss and gradient norm stand as the bits of their float32; batch, parameters and the optimizer's moments as checksums. They are
taken on the device, by programs of their own, so that the training step's numbers are the same with and without them.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import jax
import numpy as np

from alhena.batch import Batch
from alhena.files import add_line, read_lines, truncate_log
from alhena.recovery.checksum import checksums, combined
from alhena.shapes import Array
from alhena.train.step import State, StepMetrics

FILE = "fingerprints.jsonl"


@dataclass(frozen=True)
class Fingerprint:
    """In the order in which a step computes them: the first that differs says which part of the step went wrong."""

    step: int
    batch: str
    loss: str
    gradient_norm: str
    parameters: str
    moments: str

    def differs(self, other: Fingerprint) -> str | None:
        """The first quantity in which two fingerprints of a step differ."""
        names = [f.name for f in fields(self)]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)


@dataclass(frozen=True)
class PendingFingerprint:
    """What a step gave, as arrays that may still be in the making."""

    step: int
    batch: Batch
    measured: StepMetrics
    batch_sums: Array
    state_sums: Array  # of the step count, the parameters, the optimizer's moments and what is recent
    ends: np.ndarray  # where the sums of the first three end

    def read(self) -> Fingerprint:
        """Waits for the step."""
        m, sums = self.measured, np.asarray(self.state_sums)
        _, parameters, moments, _ = map(combined, np.split(sums, self.ends))
        return Fingerprint(
            self.step, combined(self.batch_sums), bits(m.loss), bits(m.gradient_norm), parameters, moments
        )


def take_fingerprint(
    step: int, batch: Batch, batch_sums: Array, state: State, measured: StepMetrics
) -> PendingFingerprint:
    """Of step ``step``, its batch and that batch's checksums, the state after it and what it measured. Does not wait."""
    ends = np.cumsum([len(jax.tree.leaves(part)) for part in (state.step, state.params, state.optimizer)])
    return PendingFingerprint(step, batch, measured, batch_sums, checksums(state), ends)


def bits(value: Array) -> str:
    """
    >>> bits(np.float32(1.5)), value_of("3fc00000")
    ('3fc00000', 1.5)
    """
    return f"{np.asarray(value, np.float32).view(np.uint32):08x}"


def float_of_bits(digits: str) -> float:
    return float(np.uint32(int(digits, 16)).view(np.float32))


def machine_description() -> dict[str, str | int]:
    """On what floating-point sums depend in their last bits."""
    device = jax.devices()[0].device_kind
    return {
        "jax": jax.__version__,
        "device": device,
        "devices": jax.device_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
    }


class Fingerprints:
    """Appends to a folder's log, from after ``step`` on."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / FILE
        self.cut(step)
        add_line(self._path, {"step": step, "machine": machine_description()})

    def cut(self, step: int) -> None:
        truncate_log(self._path, step)

    def write(self, fingerprint: Fingerprint) -> None:
        add_line(self._path, asdict(fingerprint))


def _is_machine(line: dict) -> bool:
    return isinstance(line.get("machine"), dict)


def _is_print(line: dict, names: set[str]) -> bool:
    return set(line) == names and all(isinstance(line[name], str) for name in names - {"step"})


def read_fingerprints(folder: Path) -> tuple[dict[int, Fingerprint], dict]:
    """By step; and the machine that made the last of them. Raises ValueError when there are none."""
    lines, prints, machines = read_lines(folder / FILE, step=int), {}, []
    for number, line in enumerate(lines, 1):
        if line.keys() == {"step", "machine"} and isinstance(line["machine"], dict):
            machines.append(line["machine"])
        elif line.keys() == {f.name for f in fields(Fingerprint)} and all(
            _is_word(line[key]) for key in line.keys() - {"step"}
        ):
            prints[line["step"]] = Fingerprint(**line)
        else:
            raise ValueError(
                f"{folder / FILE}, line {number}: not the fingerprint of a step, nor a machine; delete the line"
            )
    if not prints:
        raise ValueError(f"{folder / FILE}: no fingerprints; is {folder.parent} a run folder that has been trained?")
    return prints, machines[-1] if machines else {}


def _is_word(value: object) -> bool:
    """Whether it is 32 bits in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{8}", value) is not None
