"""Key-value retrieval: the values of keys whose pairs stand at a depth of a long text.

After the Gemini 1.0 report, section 5.1.5: the value of a key from the beginning of 32,768 tokens (98 %).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from alhena.content import Content, Text
from alhena.corpus.starter.text.long_retrieval import haystack, question
from alhena.corpus.starter.text.retrieval import VALUES, draw_pairs
from alhena.evaluate.card.heat_map import HeatMap
from alhena.evaluate.context.grid import Grid
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Advance, Completed, Completion, no_advance

# Keys of a document, all of them asked for.
PAIRS = 10
# Of an answer, for which a length has room: a model that is at its limit after the prompt would answer with one token.
ANSWER_TOKENS = 24
# Characters of a token, at most: of a text that surely fills a context.
MAX_CHARACTERS_PER_TOKEN = 8


def _fitted(model: EngineModel, pairs: Mapping[str, str], filler: str, depth: float, length: int) -> str:
    """The document with as much of the filler as leaves room, in so many tokens, for a question and its answer.

    Raises ValueError when the filler is too short.
    """
    encoder = model.engine.encoder
    longest = max(map(question, pairs), key=lambda asked: len(encoder.tokenizer.encode(asked)))

    def tokens(characters: int) -> int:
        text = haystack(pairs, filler[:characters], depth)
        return len(encoder.prompt([Content("user", (Text(f"{text}\n{longest}"),))]).tokens)

    fitting = bisect_right(range(len(filler) + 1), length - ANSWER_TOKENS, key=tokens) - 1
    if fitting == len(filler):
        raise ValueError(
            f"the filler has {len(filler):,} characters, fewer than {length:,} tokens need: give a longer one"
        )
    return haystack(pairs, filler[: max(fitting, 0)], depth)


def is_right(answer: str, value: str) -> bool:
    """Whether an answer names the value, and no other one.

    >>> is_right("Moon is paired with River.", "river"), is_right("river, or glass", "river"), is_right("stone", "river")
    (True, False, False)
    """
    return set(re.findall(r"\w+", answer.lower())) & set(VALUES) == {value}


def _accuracy(model: EngineModel, filler: str, cell: tuple[int, float], g: Grid, advance: Advance) -> float:
    """The percentage of right answers in one cell."""
    length, depth = cell
    right = asked = 0
    for number in range(-(-g.items // PAIRS)):
        rng = np.random.default_rng([g.seed, length, round(1000 * depth), number])
        pairs = draw_pairs(rng, PAIRS, "test")
        # Another part of the filler for each document.
        start = int(rng.integers(max(1, len(filler) - MAX_CHARACTERS_PER_TOKEN * length)))
        text = _fitted(model, pairs, filler[start : start + MAX_CHARACTERS_PER_TOKEN * length], depth, length)
        keys = list(pairs)[: g.items - asked]
        prompts = [(Text(f"{text}\n{question(key)}"),) for key in keys]
        answers = model.complete([Completion(prompt, ANSWER_TOKENS) for prompt in prompts], advance)
        if reason := next((answer for answer in answers if isinstance(answer, str)), None):
            raise ValueError(f"{length:,} tokens: {reason}")
        texts = [answer.text for answer in answers if isinstance(answer, Completed)]
        right += sum(is_right(text, pairs[key]) for text, key in zip(texts, keys, strict=True))
        asked += len(keys)
    return 100 * right / asked


def retrieval(model: EngineModel, filler: str, g: Grid, advance: Advance = no_advance) -> HeatMap:
    """Accuracy in percent by length and depth. Raises ValueError for a length that the model cannot read."""
    if max(g.lengths) > model.engine.max_prompt_tokens:
        raise ValueError(
            f"{model.name} reads at most {model.engine.max_prompt_tokens:,} tokens: choose shorter lengths"
        )
    accuracy = tuple(
        tuple(round(_accuracy(model, filler, (n, depth), g, advance), 2) for depth in g.depths) for n in g.lengths
    )
    return HeatMap(g.lengths, g.depths, accuracy, g.items, model=model.name, chance=round(100 / PAIRS, 1))
