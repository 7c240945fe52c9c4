"""Prompts that are read in groups: the answers of prompts that are read alone, whatever else is in the group."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from alhena.content import Content, Part, Text
from alhena.model import model
from alhena.serve.answer import Answer
from alhena.serve.decoding.group_reading import GROUP
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine
from tests.conftest import random_audio, random_image

LONG = "What colour is the circle? red " * 24


@pytest.fixture(scope="module")
def engine(tiny_engine: Engine) -> Engine:
    """Sizes that the compiled kernels take: a group then has the bits of a single prompt."""
    c = replace(tiny_engine.config, decoder=replace(tiny_engine.config.decoder, head_dim=32))
    return replace(tiny_engine, config=c, params=model.init(jax.random.key(5), c))


def prompts() -> list[list[Content]]:
    """Of several lengths, with and without media; some with the same first pages."""
    parts: list[tuple[Part, ...]] = [(Text(f"Which is {n}?"),) for n in range(7)]
    parts += [(random_image(n, 32, 24 + 8 * n), Text("What shape is red?")) for n in range(4)]
    parts += [(random_audio(n, 0.4), Text("Transcribe."), random_image(n)) for n in range(3)]
    parts += [(Text(f"{LONG * 2} {n}"),) for n in range(5)]
    return [[Content("user", part)] for part in parts]


def asked(engine: Engine, which: list[list[Content]]) -> list[Answer]:
    samplings = [Sampling(max_tokens=4 + n % 9, logprobs=1) for n in range(len(which))]
    answers = engine.answers([(engine.encode(p, s), s) for p, s in zip(which, samplings, strict=True)])
    assert all(isinstance(answer, Answer) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Answer)]


def test_answers_in_groups_are_those_of_single_prompts(engine):
    # With a cache of its own.
    grouped, by_itself = asked(engine, prompts()), replace(engine)
    for n, (prompt, answer) in enumerate(zip(prompts(), grouped, strict=True)):
        (alone,) = by_itself.generate([prompt], Sampling(max_tokens=4 + n % 9, logprobs=1))
        assert alone.content == answer.content
        assert [p.logprob for p in answer.logprobs] == pytest.approx([p.logprob for p in alone.logprobs], abs=1e-4)
    # The pages that prompts begin with are read once.
    assert sum(answer.cached_tokens > 0 for answer in grouped[-5:]) == 4


def test_guidance_has_two_sequences_in_a_group(engine):
    sampling = Sampling(max_tokens=70, guidance=3.0, image_first=True)
    prompt = [Content("user", (Text("Draw a blue star."),))]
    (one,) = engine.generate([prompt], sampling)
    several = engine.answers([(engine.encode(prompt, sampling), sampling)] * (GROUP + 1))
    assert all(isinstance(answer, Answer) and answer.content == one.content for answer in several)


def test_a_prompt_that_the_cache_can_never_hold_is_refused_and_the_others_are_answered(engine):
    small = replace(engine, cache_bytes=1 << 16)
    sampling = Sampling(max_tokens=4)
    long, short = (engine.encode([Content("user", (Text(text),))]) for text in (LONG * 40, "red"))
    answers = small.answers([(short, sampling), (long, sampling), (short, sampling)])
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, True]
