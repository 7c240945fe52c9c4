"""Key-value retrieval from long documents: pairs at any depth of modules of the standard library, questions at the end.

Pairs of words: moon river, stone apple, lamp glass.     After the experiment on long context of the Gemini 1.0 report,
… filler, up to the length of the source …               section 5.1.5: pairs first, then filler, then a question.
Which word is paired with moon?     moon river           ``facts`` holds the depth of the pairs (0 first … 1 last).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, chat, sample
from alhena.corpus.starter.splits import Split
from alhena.corpus.starter.text.prose_and_code import whole_modules
from alhena.corpus.starter.text.retrieval import draw_pairs

# Tokens that the longest documents of a source may have.
LENGTHS = {"retrieval_1k": 1024, "retrieval_2k": 2048, "retrieval_8k": 8192, "retrieval_32k": 32768}
# Half of the documents are about as long, the others down to this share of it.
SHORTEST = 0.25
# Of the filler, with a text tokenizer of 2,048 tokens: less than its mean, so that one document in twenty is too long.
CHARACTERS_PER_TOKEN = 2.4
MIN_PAIRS, MAX_PAIRS = 3, 12
MAX_QUESTIONS = 8


def record(pairs: Mapping[str, str]) -> str:
    """The pairs as a sentence.

    >>> record({"moon": "river", "lamp": "glass"})
    'Pairs of words: moon river, lamp glass.'
    """
    return f"Pairs of words: {', '.join(map(' '.join, pairs.items()))}."


def question(key: str) -> str:
    return f"Which word is paired with {key}?"


def haystack(pairs: Mapping[str, str], filler: str, depth: float) -> str:
    """The filler with the pairs at the line end nearest below a depth: 0 before all of it, 1 after all of it.

    >>> haystack({"moon": "river"}, "one\\ntwo\\nsix", 0.5)
    'one\\nPairs of words: moon river.\\ntwo\\nsix'
    """
    at = len(filler) if depth >= 1 else filler.rfind("\n", 0, int(depth * len(filler))) + 1
    before, after = filler[:at].removesuffix("\n"), filler[at:]
    return "\n".join(part for part in (before, record(pairs), after) if part)


@lru_cache(maxsize=3)
def _running_text(split: Split) -> str:
    """The modules of a split, one after the other."""
    return "\n".join(whole_modules(split).values())


def filler(rng: np.random.Generator, split: Split, characters: int) -> str:
    """Running text of a split: whole modules one after the other, from the beginning of a random line on, cut at a length.

    Of passages of different modules a model would learn that nothing before the last few hundred tokens matters.
    """
    text = _running_text(split)
    start = text.find("\n", int(rng.integers(len(text)))) + 1
    out = text[start : start + characters]
    return out if len(out) == characters else f"{out}\n{text * math.ceil(characters / len(text))}"[:characters]


def turns(text: str, pairs: Mapping[str, str], asked: Iterable[str]) -> list[tuple[str, str]]:
    """Questions and answers; the first question follows the document. An answer is the pair, as in the document."""
    first, *rest = ((question(key), f"{key} {pairs[key]}") for key in asked)
    return [(f"{text}\n{first[0]}", first[1]), *rest]


def make(spec: ItemSpec) -> Document:
    """A document of up to the tokens of its source, with up to eight questions in training, one elsewhere.

    In training half of the documents begin with the pairs.
    """
    rng, training = spec.rng, spec.split == "train"
    share = 1.0 if rng.random() < 0.5 else math.exp(rng.uniform(math.log(SHORTEST), 0))
    size = LENGTHS[spec.source] * share * CHARACTERS_PER_TOKEN
    pairs = draw_pairs(rng, int(rng.integers(MIN_PAIRS, MAX_PAIRS + 1)), spec.split)
    depth = 0.0 if training and rng.random() < 0.5 else float(rng.random())
    asked = sample(rng, list(pairs), MAX_QUESTIONS if training else 1)
    text = haystack(pairs, filler(rng, spec.split, int(size)), depth)
    return chat(spec, [], turns(text, pairs, asked), depth=round(depth, 3), pairs=len(pairs))
