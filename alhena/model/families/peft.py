"""Adapters in the layout of the PEFT library: ``adapter_config.json`` and ``adapter_model.safetensors``, in and out.

    layers.0.4.query.down, index 1  ◄──►  base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight  [r, 1536]

The updates of a layer are two matrices there too, ``[out, in]`` as all of theirs. Their factor is ``lora_alpha / r``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alhena.files import write_json
from alhena.model import config, lora, model
from alhena.model.families.export_weights import exported
from alhena.model.families.hf_settings import parse_settings
from alhena.model.families.model_config import described
from alhena.model.families.open_weights import tensor_table
from alhena.model.families.tensor_map import Source
from alhena.model.spec import named
from alhena.model.storage.tensors import FLOATS, Stored, open_file, read_settings, regular
from alhena.model.storage.weights import write_arrays
from alhena.schema import shown

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
# In the files of Gemma 3 with images modules have an older name than in the libraries, as adapters written by earlier versions.
OLD_MODULE, MODULE = "language_model.model.", "model.language_model."
# Keys of which only these values are implemented.
FIXED: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_rslora": (False, None), "use_dora": (False, None), "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []), "layers_to_transform": (None,),
    "layers_pattern": (None,), "layer_replication": (None,), "target_parameters": (None, []), "trainable_token_indices": (None,),
    "lora_bias": (False, None), "use_qalora": (False, None), "exclude_modules": (None, []), "megatron_config": (None,),
    "kasa_config": (None,), "monteclora_config": (None,), "arrow_config": (None,), "alora_invocation_tokens": (None,),
    "use_bdlora": (False, None),
}  # fmt: skip
# Keys that do not change what adapters compute.
IRRELEVANT = frozenset(
    """
    auto_mapping base_model_name_or_path revision inference_mode init_lora_weights lora_dropout task_type loftq_config eva_config
    corda_config megatron_core runtime_config peft_version qalora_group_size ensure_weight_tying target_modules
    velora_config lora_ga_config
    """.split()
)


@dataclass(frozen=True)
class _Settings:
    r: int
    lora_alpha: float


def _names(c: config.Model, updates: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Our name, index in the stack, and their name of each adapted matrix."""
    for name, found in tensor_table(described(exported(c))).items():
        if name in updates and not isinstance(found, Source):
            for index, source in enumerate(found):
                yield name, index, _module(PREFIX + source.names[0].removesuffix(".weight"))


def _module(name: str) -> str:
    """The name of a module, or of a tensor of adapters, as the libraries have it now."""
    old = PREFIX + OLD_MODULE
    return PREFIX + MODULE + name.removeprefix(old) if name.startswith(old) else name


def write(folder: Path, adapters: lora.Adapters, c: config.Model, base: str) -> None:
    """Writes adapters of the model ``base``: the name or the path of its folder."""
    arrays, modules, updates = dict[str, np.ndarray](), set[str](), adapters.by_name
    for ours, index, theirs in _names(c, updates):
        update = updates[ours]
        arrays[f"{theirs}.lora_A.weight"] = np.asarray(update.down[index]).T
        arrays[f"{theirs}.lora_B.weight"] = np.asarray(update.up[index]).T
        modules.add(theirs.rpartition(".")[2])
    write_arrays(folder / WEIGHTS, arrays)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": adapters.rank,
        "lora_alpha": adapters.scale * adapters.rank,
        "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(modules), "inference_mode": True, "use_rslora": False,
        "use_dora": False, "fan_in_fan_out": False,
    }  # fmt: skip
    write_json(folder / SETTINGS, settings)


def read(folder: Path, c: config.Model) -> lora.Adapters:
    """The adapters of a model. Raises ValueError that names the file for another model's, and for what is not understood."""
    path = folder / SETTINGS
    stored = {name: value for name, value in read_settings(path).items() if name not in IRRELEVANT}
    settings = parse_settings(_Settings, stored, FIXED, path)
    tensors = {_module(name): stored for name, stored in open_file(regular(folder / WEIGHTS)).items()}
    specs = named(model.weights(c))
    adapted = lora.weights(model.weights(c), settings.r, settings.lora_alpha / settings.r)
    updates: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for ours, index, theirs in _names(c, adapted.by_name):
        pair = [tensors.pop(f"{theirs}.lora_{half}.weight", None) for half in "AB"]
        if pair == [None, None]:
            continue
        inner, outer = specs[ours].shape[1:]
        down = _matrix(pair[0], theirs, (settings.r, inner), path)
        updates.setdefault(ours, {})[index] = down, _matrix(pair[1], theirs, (outer, settings.r), path)
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: {shown(min(tensors))} is no update of a linear layer of this model")
    if not updates:
        raise ValueError(f"{folder / WEIGHTS}: it holds no updates")
    names = tuple(name for name in adapted.names if name in updates)
    arrays = tuple(_stacked(updates[name], adapted.by_name[name]) for name in names)
    return lora.Adapters(arrays, names, adapted.scale)


def _matrix(stored: Stored | None, name: str, shape: tuple[int, int], path: Path) -> np.ndarray:
    """A matrix ``[in, out]`` of an update, in float32."""
    if stored is None or stored.shape != shape or stored.dtype not in FLOATS:
        found = "missing" if stored is None else f"{stored.dtype} {shown(stored.shape)}"
        raise ValueError(f"{path.parent / WEIGHTS}: a half of the update of {name} is {found}, expected {shape}")
    return stored.read().astype(np.float32).T


def _stacked(pairs: Mapping[int, tuple[np.ndarray, np.ndarray]], specs: lora.Update) -> lora.Update:
    """The updates of all layers of a stack; those of layers without one are zero."""
    down, up = np.zeros(specs.down.shape, np.float32), np.zeros(specs.up.shape, np.float32)
    for index, (of_down, of_up) in pairs.items():
        down[index], up[index] = of_down, of_up
    return lora.Update(jnp.asarray(down), jnp.asarray(up))
