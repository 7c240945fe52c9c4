"""The first layers of a decoder, with the weights of the complete one: nothing is copied.

Hidden states of the middle layers describe a text better than those of the last, which serve to predict the next token.
"""

from __future__ import annotations

from dataclasses import replace

from alhena.batch import Batch
from alhena.model import config, model
from alhena.model.transformer.decoder import as_segments
from alhena.model.transformer.layer_kinds import segments
from alhena.shapes import Array, Float


def truncated(c: config.Decoder, layers: int) -> config.Decoder:
    """The configuration of the first layers."""
    shared = max(layers - (c.layers - c.kv_sharing_layers), 0)
    return replace(c, layers=layers, kv_sharing_layers=shared)


def _is_prefix(c: config.Decoder, layers: int) -> bool:
    """Whether the stacks of the complete decoder hold the first layers in the same order."""
    cut, whole = segments(truncated(c, layers)), segments(c)
    pairs = list(zip(cut, whole, strict=False))
    same = all(a.kinds == b.kinds and a.first == b.first and a.repeats <= b.repeats for a, b in pairs)
    return len(cut) <= len(whole) and same and all(a.repeats == b.repeats for a, b in pairs[:-1])


def split_near(c: config.Decoder, target: float) -> int:
    """The number of first layers nearest to ``target`` whose weights are a prefix of every stack.

    >>> gemma_3 = config.Decoder(8, layers=18, heads=2, head_dim=4, hidden=8, window=2, global_every=6)
    >>> gemma_4 = config.Decoder(8, layers=12, heads=2, head_dim=4, hidden=8, window=2, global_every=3, global_head_dim=8)
    >>> [[split_near(c, target) for target in (5, 7, 9)] for c in (gemma_3, gemma_4)]
    [[5, 7, 9], [6, 6, 9]]
    """
    return min((n for n in range(1, c.layers + 1) if _is_prefix(c, n)), key=lambda n: abs(n - target))


def hidden_states(params: model.Params, c: config.Model, batch: Batch, layers: int) -> Float[Array, "B L D"]:
    """Hidden states of every token after the first ``layers`` layers, a number of :func:`split_near`."""
    cut = truncated(c.decoder, layers)
    stacks = as_segments(params.layers)[: len(segments(cut))]
    return model.decoder_output(replace(params, layers=stacks), replace(c, decoder=cut), batch)
