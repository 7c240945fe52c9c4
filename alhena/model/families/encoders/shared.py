"""What the readers of open encoders share: configuration, clipped linear layers.

An encoder is stored alone or inside a larger model; its tensors have the same names after a prefix. A linear map is ``[out, in]``
in the file and ``[in, out]`` here; a convolution ``[out, in, height, width]`` is ``[height·width·in, out]`` here; a scale is stored
here as an offset from one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from alhena.model import config
from alhena.model.encoders.clipped import BOUNDS, UNBOUNDED
from alhena.model.families.hf_settings import located, parse_settings
from alhena.model.families.tensor_map import Source, matrix
from alhena.model.storage.tensors import Tensors, read_settings
from alhena.model.storage.weights import check_size
from alhena.schema import shown
from alhena.shapes import Float

S = TypeVar("S")


@dataclass(frozen=True)
class Layout(Generic[S]):
    """How a family stores an encoder."""

    settings: type[S]  # dataclass of the configuration, by the names of the file
    section: str  # key of the encoder's configuration inside a larger model's
    fixed: Mapping[str, Sequence[Any]]  # keys of which only these values are implemented; ``model_type`` is one
    prefixes: Sequence[str]  # of the tensors' names
    probe: str  # name of a tensor that every such encoder has: it finds the prefix

    def open(self, folder: Path) -> tuple[S, Tensors]:
        """Configuration and tensors. Raises ValueError for another kind of encoder, or an option that is not implemented."""
        path = folder / "config.json"
        stored = read_settings(path)
        section = stored.get(self.section, stored)
        model_type = section.get("model_type") if isinstance(section, Mapping) else section
        if model_type != self.fixed["model_type"][0]:
            raise ValueError(f"{path}: an encoder of type {shown(model_type)}, not {self.fixed['model_type'][0]}")
        field = self.section if self.section in stored else ""
        settings = parse_settings(self.settings, section, self.fixed, path, field)
        return settings, Tensors(folder, self.prefixes, self.probe)


def encoder_config(tensors: Tensors, make: Callable[[], config.Vision]) -> config.Vision:
    """The configuration that ``make`` returns. Raises ValueError naming the file if it is invalid or needs larger weights."""
    with located(tensors.folder / "config.json"):
        c = make()
    check_size(tensors.folder, tensors.nbytes, c.layers * c.width * (3 * c.width + 2 * c.hidden))
    return c


def _joined_bounds(*bounds: Float[np.ndarray, ""]) -> Float[np.ndarray, " 4"]:
    return np.clip(np.stack(bounds).astype(np.float32), -UNBOUNDED[1], UNBOUNDED[1])


def _split_bounds(bounds: Float[np.ndarray, " 4"]) -> tuple[Float[np.ndarray, ""], ...]:
    bounds = bounds.astype(np.float32)
    infinite = np.where(np.abs(bounds) == UNBOUNDED[1], np.sign(bounds) * np.float32(np.inf), bounds)
    return tuple(bound.reshape(()) for bound in np.split(infinite, len(BOUNDS)))


def bounds(name: str) -> Source:
    """The four scalars beside the weight of a clipped linear layer, as one array; infinite ones are the largest float32 here."""
    return Source(tuple(f"{name}.{bound}" for bound in BOUNDS), (), _joined_bounds, _split_bounds)


def clipped_linear(field: str, name: str, inner: int, outer: int, clipped: bool) -> dict[str, Source]:
    """Sources of a linear layer of Gemma 4's encoders, whose names have a part more than others, clipped or not."""
    weight = matrix(f"{name}.linear.weight", inner=inner, outer=outer)
    return {f"{field}.weight": weight, f"{field}.bounds": bounds(name)} if clipped else {field: weight}
