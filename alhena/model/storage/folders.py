"""Model folders: weights of their own, or adapters beside the weights of a folder next to them.

models/gemma/  model.json  weights.safetensors  …
models/mine/   model.json  adapter_config.json  adapter_model.safetensors  …      facts.adapter_of: gemma
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from alhena.files import FILES, check_sealed, read_entries
from alhena.model import config, model
from alhena.model.storage import weights
from alhena.model.storage.weights import WEIGHTS
from alhena.schema import shown


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds adapters instead of weights."""
    return (folder / "adapter_config.json").exists()


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights of a model folder, as recorded when they were written; None when it is not recorded."""
    entries = read_entries(folder / FILES) if (folder / FILES).exists() else {}
    return str(entries[WEIGHTS]["sha256"]) if WEIGHTS in entries else None


def base_of(folder: Path) -> Path:
    """The folder of the weights beside which the adapters of a folder were trained: a folder next to it.

    Raises ValueError when it is missing, or its weights are others.
    """
    _, facts = weights.read_config(folder)
    name, path = facts.get("adapter_of"), folder / "model.json"
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
        raise ValueError(f"{path}: facts.adapter_of is {shown(name)}; it must be the name of a folder beside this one")
    base = folder.parent / name
    if not (base / WEIGHTS).exists():
        raise ValueError(f"{base}: no such model; {folder} holds adapters for it, put it beside them")
    check_sealed(base)
    digest = facts.get("adapter_of_sha256")
    if digest is not None and digest != weights_digest(base):
        raise ValueError(f"{base / WEIGHTS}: not the weights for which the adapters of {folder} were trained")
    return base


def load_model(folder: Path) -> tuple[model.Params, config.Model]:
    """The weights of a model folder, with its adapters beside them, and its configuration. Raises ValueError that names the file."""
    if not is_adapter(folder):
        return weights.load_model(folder)
    # Only adapters need the tensor names of the families.
    from alhena.model import lora
    from alhena.model.families import peft

    base = base_of(folder)
    params, c = weights.load_model(base)
    if weights.read_config(folder)[0] != c:
        raise ValueError(f"{folder / 'model.json'}: another configuration than that of {base}")
    return lora.attach(params, peft.read(folder, c)), c


def is_quantized(folder: Path) -> bool:
    """Whether a model folder holds quantized weights, by the names of its tensors."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            return any(name.endswith(".packed") for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
