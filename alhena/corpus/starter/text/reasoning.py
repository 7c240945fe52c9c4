"""Reasoning: sums of several steps and small word problems, each with worked steps or with the bare answer, as the request says.

    5+3-4+2 Show your steps.                                        5+3=8 8-4=4 4+2=6 answer 6
    Mia has 5 pens, finds 3, sells 4. How many? Only the answer.    4

    reasoning/answer   the bare answer; in test of two to MAX_STEPS steps, of which no training problem has the first two (splits.py)
    reasoning/steps    such problems with worked steps
    reasoning/longer   with worked steps, more of them than in any training problem

Every number on the way lies between 0 and LIMIT: there are ninety different steps, which a small model can know by heart. ``facts``
hold the problem and its number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alhena.content import Document
from alhena.corpus.starter.items import ItemSpec, chat, pick
from alhena.corpus.starter.splits import Split, split_of
from alhena.corpus.starter.text.tool_intents import PEOPLE

LIMIT = 9
MAX_STEPS, LONGER_STEPS = 4, (5, 6)
# Of training problems, by their number of steps: single ones are the parts of all others.
STEP_SHARES = (0.2, 0.3, 0.25, 0.25)
STEPS, BARE = "Show your steps.", "Only the answer."
# What precedes the answer where there are steps.
ANSWER = "answer"
THINGS = "pens books coins eggs cards keys cups apples".split()
GAINS, LOSSES = ("finds", "buys", "gets"), ("loses", "sells", "gives away")
Rng = np.random.Generator


@dataclass(frozen=True)
class Problem:
    """A question without the request for a form, its worked steps, and its answer."""

    question: str
    steps: str
    answer: int

    @property
    def worked(self) -> str:
        return f"{self.steps} {ANSWER} {self.answer}"


def _numbers(rng: Rng, count: int) -> list[int]:
    """A start and that many signed steps; every partial sum lies between 0 and LIMIT."""
    numbers = [int(rng.integers(1, LIMIT + 1))]
    for _ in range(count):
        total = sum(numbers)
        numbers.append(pick(rng, [n for n in range(-total, LIMIT - total + 1) if n]))
    return numbers


def _question(rng: Rng, numbers: list[int]) -> str:
    """As a sum, or as a story."""
    if rng.random() < 0.5:
        return str(numbers[0]) + "".join(f"{n:+d}" for n in numbers[1:])
    events = [f"{pick(rng, GAINS if n > 0 else LOSSES)} {abs(n)}" for n in numbers[1:]]
    return f"{pick(rng, PEOPLE)} has {numbers[0]} {pick(rng, THINGS)}, {', '.join(events)}. How many?"


def problem(rng: Rng, split: Split, count: int) -> Problem:
    """A problem of that many steps; how it begins is held out for the test or is not, if training has such a number of steps."""
    numbers = _numbers(rng, count)
    while 2 <= count <= MAX_STEPS and (split_of("reasoning", *numbers[:3]) == "test") != (split == "test"):
        numbers = _numbers(rng, count)
    totals = np.cumsum(numbers).tolist()
    steps = " ".join(f"{totals[i]}{numbers[i + 1]:+d}={totals[i + 1]}" for i in range(count))
    return Problem(_question(rng, numbers), steps, totals[-1])


def make(spec: ItemSpec) -> Document:
    """One problem; in training with steps or without."""
    rng, task = spec.rng, spec.task.partition("/")[2]
    if spec.split == "train":
        task = "steps" if rng.random() < 0.6 else "answer"
        count = 1 + int(rng.choice(MAX_STEPS, p=STEP_SHARES))
    else:
        count = pick(rng, LONGER_STEPS) if task == "longer" else int(rng.integers(2, MAX_STEPS + 1))
    made = problem(rng, spec.split, count)
    form, answer = (BARE, str(made.answer)) if task == "answer" else (STEPS, made.worked)
    return chat(spec, [], [(f"{made.question} {form}", answer)], problem=made.question, steps=count)
