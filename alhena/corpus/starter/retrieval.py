"""Key-value retrieval: read a list, then answer what stood at a key, wherever in the list it was.

moon river, stone apple,     moon?  moon river       after Liu et al. 2023, "Lost in the middle" (arXiv:2307.03172):
lamp glass.                  lamp?  lamp glass       the position of the asked key (0 first … 1 last) is kept, so that
                                                     the report can show accuracy along the context
"""

from __future__ import annotations

import math

from alhena.content import Document
from alhena.corpus.starter.items import Order, chat, pick_some
from alhena.corpus.starter.splits import split_of

FEWEST_PAIRS, MOST_PAIRS = 3, 12
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


def make(order: Order) -> Document:
    rng = order.rng
    count = round(math.exp(rng.uniform(math.log(FEWEST_PAIRS), math.log(MOST_PAIRS))))
    keys = pick_some(rng, KEYS, count)
    while split_of("keys", *sorted(keys)) != order.split:
        keys = pick_some(rng, KEYS, count)
    values = [VALUES[int(i)] for i in rng.integers(0, len(VALUES), count)]
    asked = [int(i) for i in rng.permutation(count)[: 6 if order.split == "train" else 1]]
    turns = [(f"{keys[i]}?", f"{keys[i]} {values[i]}") for i in asked]
    pairs = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    turns[0] = (f"{pairs}. {turns[0][0]}", turns[0][1])
    return chat(order, [], turns, position=asked[-1] / (count - 1), pairs=count)
