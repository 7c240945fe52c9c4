"""The one legend of dimension letters, used in einsums, in annotations and as suffixes (``x_BLD``).

    B  batch (rows)            P  patches in a row            K  key/value heads
    L  tokens in a row         Q  values in a patch (p·p·3)   H  head dimension
    S  slots in a KV cache     C  audio chunks in a row       F  hidden width of an MLP
    D  model width             T  log-mel frames in a chunk   V  vocabulary
    N  query heads             M  mel bins                    E  width of an encoder
    G  groups of a quantised dimension                        Z  image codes

Array aliases (from jaxtyping) are re-exported so that a module needs one import:

>>> from alhena.shapes import Float, Array
>>> Float[Array, "B L D"].dim_str
'B L D'
"""

from jaxtyping import Array, Bool, Float, Int, Int8, Shaped, UInt8, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "Int8", "Shaped", "UInt8", "UInt32"]
