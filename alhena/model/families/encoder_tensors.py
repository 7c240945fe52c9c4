"""What the readers of open encoders share: configuration, tensors of stacked layers, convolution kernels.

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
from alhena.model.families.hf_settings import parse_settings
from alhena.model.tensors import Read, Tensors, read_settings
from alhena.model.weights import check_size
from alhena.schema import shown
from alhena.shapes import Array, Float

S = TypeVar("S")
C = TypeVar("C", config.Vision, config.Usm)


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


def encoder_config(tensors: Tensors, make: Callable[[], C]) -> C:
    """The configuration that ``make`` returns. Raises ValueError naming the file if it is invalid or needs larger weights."""
    try:
        c = make()
    except ValueError as error:
        raise ValueError(f"{tensors.folder / 'config.json'}: {error}") from None
    check_size(tensors.folder, tensors.nbytes, c.layers * c.width * (3 * c.width + 2 * c.hidden))
    return c


class StackedTensors:
    """Reads tensors of all layers as stacked arrays. ``pattern`` is the prefix of a layer's tensors, with ``{}`` for its number.

    Methods return Any: the arrays are NumPy's until the encoder is complete.
    """

    def __init__(self, read: Read, pattern: str, layers: int) -> None:
        self._read, self._prefixes = read, [pattern.format(i) for i in range(layers)]

    def stack(self, name: str, *shape: int) -> Any:
        """``[layers, *shape]``."""
        return np.stack([self._read(prefix + name, shape) for prefix in self._prefixes])

    def scale(self, name: str, width: int) -> Any:
        """``[layers, width]``, the scales of a norm."""
        return self.stack(f"{name}.weight", width) - 1

    def matrix(self, *names: str, inner: int, outer: int) -> Any:
        """``[layers, inner, outer]``, of one linear map or of several concatenated along their outputs."""
        each = outer // len(names)
        return np.concatenate([self.stack(f"{name}.weight", each, inner) for name in names], 1).swapaxes(1, 2)


def conv_kernel(read: Callable[..., Any], name: str, outer: int, inner: int, side: int) -> Float[Array, "K O"]:
    """A convolution of ``side`` × ``side`` as a matrix ``[side·side·inner, outer]``."""
    return read(name, (outer, inner, side, side)).transpose(2, 3, 1, 0).reshape(-1, outer)
