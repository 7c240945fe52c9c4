"""Legend of dimension letters, used in einsums, in annotations and as suffixes (``x_BLD``).

    B  batch size                     P  patches per sequence          K  key/value heads
    L  sequence length, in tokens     Q  values per patch (p·p·3)      H  head dimension
    S  keys and values                C  audio chunks per sequence     F  hidden width of an MLP
    D  model width                    T  log-mel frames per chunk      V  vocabulary size
    N  query heads                    M  mel bins                      E  width of an encoder
    R  rows of the embedding table    I, O  inputs and outputs of a matmul

Array types of jaxtyping are re-exported, so that a module needs one import:

>>> from alhena.shapes import Float
>>> Float[np.ndarray, "B L D"].dim_str
'B L D'
"""

from typing import TYPE_CHECKING, Any, TypeVar, no_type_check

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Shaped, UInt8, UInt32

if TYPE_CHECKING:
    from jax import Array
else:
    # Functions of jax.numpy accept NumPy arrays too. Type checkers may only rely on the attributes of jax.Array.
    Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int", "Int8", "Shaped", "UInt8", "UInt32", "pytree"]

Class = TypeVar("Class", bound=type[Any])


def pytree(dataclass: Class) -> Class:
    """Registers a frozen dataclass of arrays as a pytree.

    Trees of this structure hold other leaves too: shapes, shardings, specifications, placeholders of JAX transformations.
    Hence the annotations of its fields, which describe its arrays, are not checked when an instance is made.
    """
    return jax.tree_util.register_dataclass(no_type_check(dataclass))
