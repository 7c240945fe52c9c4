"""Quantizes a model step by step, and measures each on held-out examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alhena.compress import report
from alhena.compress.steps import Quantization, Source, quantized
from alhena.model import config, model
from alhena.stages import CONSOLE
from alhena.tokens.examples.loader import BatchShape
from alhena.train.mixture import Training, open_examples
from alhena.train.monitoring.validation import losses
from alhena.train.trainer import Folders


@dataclass(frozen=True)
class HeldOut:
    """Encoded examples that no step reads, the shape of their batches, and how many of each source are measured (None: all)."""

    folder: Path
    shape: BatchShape
    batches: int | None = None

    def losses(self, params: model.Params, c: config.Model) -> report.Losses:
        return losses(params, c, open_examples(self.folder), self.shape, self.batches)


def quantize_and_measure(
    source: Source, how: Quantization, t: Training | None, folders: Folders, held_out: HeldOut | None
) -> tuple[model.Params, dict[str, report.Losses]]:
    """The quantized model; and the losses of the full-precision one and of the model after each step, if examples are held out."""
    measured = {}
    if held_out is not None:
        measured[report.FULL] = held_out.losses(source.params, source.c)
    for name, last in quantized(source, how, t, folders, every=held_out is not None):
        if held_out is not None:
            measured[name] = held_out.losses(last, source.c)
            CONSOLE.print(f"{name}: {measured[name]['modality'][report.ALL]:.4f} nats a token", highlight=False)
    return last, measured
