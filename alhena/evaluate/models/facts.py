"""What a report says of a model: its parameters, the form and bytes of its weights, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alhena.model import model
from alhena.model.storage.folders import base_of, is_adapter, is_quantized
from alhena.model.storage.weights import WEIGHTS, read_config


@dataclass(frozen=True)
class ModelFacts:
    """``form`` is the number format of the weights; zeros: not known."""

    parameters: int = 0
    bytes: int = 0
    form: str = ""
    tokens_seen: int = 0
    # The family of open weights that it was imported from; empty: one of our own.
    imported: str = ""

    def text(self) -> str:
        """One line.

        >>> ModelFacts(2_634_880, 7_233_600, "4 bits", 7_372_800).text()
        '2.63 M parameters · 4 bits · 7.2 MB · 7.4 M tokens seen'
        """
        parts = [
            f"{_short(self.parameters)} parameters" if self.parameters else "", self.form,
            f"{self.bytes / 1e6:,.1f} MB" if self.bytes else "",
            f"{_short(self.tokens_seen, 1)} tokens seen" if self.tokens_seen else "", self.imported,
        ]  # fmt: skip
        return " · ".join(filter(None, parts))


def _short(count: int, digits: int = 2) -> str:
    unit, name = next((u, n) for u, n in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if count >= u)
    return f"{count / unit:.{digits}f} {name}".strip()


def model_facts(folder: Path) -> ModelFacts:
    """Facts of a model folder; of adapters those of the base that they change, with their own bytes added."""
    c, facts = read_config(folder)
    base = base_of(folder) if is_adapter(folder) else folder
    files = base / WEIGHTS, folder / "adapter_model.safetensors"
    size = sum(file.stat().st_size for file in files if file.exists())
    form = "4 bits" if is_quantized(base) else str(facts.get("weights", c.compute_dtype))
    return ModelFacts(
        model.count(model.weights(c)), size, form, int(facts.get("tokens_seen", 0)), str(facts.get("imported", ""))
    )
