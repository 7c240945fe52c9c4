"""Key-value retrieval: a list of pairs, then questions for the values of keys at any position.

moon river, stone apple,     moon?  moon river       After Liu et al. 2023, "Lost in the middle" (arXiv:2307.03172).
lamp glass.                  lamp?  lamp glass       ``facts`` holds the position of the key (0 first … 1 last), so that
                                                     the report can show accuracy by position in the context.
"""

from __future__ import annotations

import math

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, chat, sample
from alhena.corpus.starter.splits import Split, split_of

MIN_PAIRS, MAX_PAIRS = 3, 12
KEYS = (
    "moon stone lamp tree fish bird door book king ship hand wolf rain fire gold salt wind rope leaf sand milk bell "
    "coin nest bone wool silk iron clay snow star lake cave hill road farm mill boat drum harp lion bear deer frog "
    "crab duck goat horse mouse snake eagle whale tiger zebra camel crown sword shield tower bridge"
).split()
VALUES = (
    "river apple glass bread chair table cloud green piano sugar paper knife spoon plate music dream train plane "
    "house garden winter summer spring autumn morning evening silver copper cotton lemon melon cherry orange pepper "
    "butter cheese honey coffee pencil letter"
).split()


def draw_pairs(rng: np.random.Generator, count: int, split: Split) -> dict[str, str]:
    """Keys and values; sets of keys belong to one split."""
    keys = sample(rng, KEYS, count)
    while split_of("keys", *sorted(keys)) != split:
        keys = sample(rng, KEYS, count)
    return {key: VALUES[int(i)] for key, i in zip(keys, rng.integers(0, len(VALUES), count), strict=True)}


def make(spec: ItemSpec) -> Document:
    """A list of 3 to 12 pairs (log-uniform) with up to six questions in training, one elsewhere."""
    rng = spec.rng
    count = round(math.exp(rng.uniform(math.log(MIN_PAIRS), math.log(MAX_PAIRS))))
    drawn = list(draw_pairs(rng, count, spec.split).items())
    selected = [int(i) for i in rng.permutation(count)[: 6 if spec.split == "train" else 1]]
    turns = [(f"{drawn[i][0]}?", " ".join(drawn[i])) for i in selected]
    pairs = ", ".join(" ".join(pair) for pair in drawn)
    turns[0] = (f"{pairs}. {turns[0][0]}", turns[0][1])
    return chat(spec, [], turns, position=selected[-1] / (count - 1), pairs=count)
