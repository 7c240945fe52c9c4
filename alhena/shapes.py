"""The one legend of dimension letters, used in einsums, in annotations and as suffixes (``x_BLD``).

    B  batch (rows)            P  patches in a row            K  key/value heads
    L  tokens in a row         Q  values in a patch (p·p·3)   H  head dimension
    S  slots in a KV cache     C  audio chunks in a row       F  hidden width of an MLP
    D  model width             T  log-mel frames in a chunk   V  vocabulary
    N  query heads             M  mel bins                    E  width of an encoder
    G  groups of a quantized dimension                        Z  image codes

Array aliases (from jaxtyping) are re-exported so that a module needs one import:

>>> from alhena.shapes import Float, Array
>>> Float[Array, "B L D"].dim_str
'B L D'
"""

from typing import TYPE_CHECKING, Any, TypeVar, no_type_check

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Shaped, UInt8, UInt32

if TYPE_CHECKING:
    from jax import Array
else:
    # Functions of jax.numpy take NumPy's arrays too. What a type checker may rely on are the attributes of JAX's.
    Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int", "Int8", "Shaped", "UInt8", "UInt32", "pytree"]

Class = TypeVar("Class", bound=type[Any])


def pytree(dataclass: Class) -> Class:
    """Registers a frozen dataclass of arrays as a pytree.

    Trees of its form hold other leaves too (shapes, shardings, specifications, what JAX puts in while it transforms functions), so
    the annotations of its fields, which say what it holds in use, are not checked when one is made.
    """
    return jax.tree_util.register_dataclass(no_type_check(dataclass))
