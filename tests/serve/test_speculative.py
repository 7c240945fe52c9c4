"""Speculative decoding: the answers are those without a draft, at every temperature; acceptance; caches; what a draft must be."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import fields, replace
from urllib.request import urlopen

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.serve.answer import Answer
from alhena.serve.decoding.sampling.sampler import Sampling, sample, stack
from alhena.serve.decoding.slots import read_chunks, run_steps
from alhena.serve.decoding.speculative.draft import Draft, DraftSource, text_only
from alhena.serve.decoding.speculative.rounds import run_rounds
from alhena.serve.engine import Engine
from alhena.tokens.text import tokenizer
from tests.serve.conftest import running, write_tiny
from tests.serve.test_engine import LONG, SCHEMA, fresh, job_of, requests, run, user

LOOKUP = Draft(None, None, 3, "lookup")


def perturbed(engine: Engine, noise: float, tokens: int = 3) -> Draft:
    """The model itself with noise on its weights: a draft that is often right."""
    leaves, structure = jax.tree.flatten(engine.params)
    rng = np.random.default_rng(5)
    noisy = [leaf * (1 + noise * rng.normal(size=leaf.shape).astype(np.float32)) for leaf in leaves]
    return Draft(*text_only(jax.tree.unflatten(structure, noisy), engine.config), tokens, "perturbed")


@pytest.fixture(scope="session")
def engine(tiny_engine: Engine) -> Engine:
    """Two slots: few batch sizes are compiled."""
    return replace(tiny_engine, slots=2)


@pytest.fixture(scope="module")
def drafted(engine: Engine) -> Engine:
    return replace(engine, draft=perturbed(engine, 0.2))


def assert_same(a: Answer, b: Answer) -> None:
    """The same tokens and parts; log-probabilities differ by rounding: the matmuls have other numbers of rows."""
    kept = [f.name for f in fields(Answer) if f.name not in ("logprobs", "cached_tokens")]
    assert [getattr(a, name) for name in kept] == [getattr(b, name) for name in kept]
    assert [t.token for t in a.logprobs] == [t.token for t in b.logprobs]
    for x, y in zip(a.logprobs, b.logprobs, strict=True):
        np.testing.assert_allclose(x.logprob, y.logprob, atol=1e-4)
        np.testing.assert_allclose([v for _, v in x.top], [v for _, v in y.top], atol=1e-4)


def acceptance(engine: Engine) -> float:
    counts = engine.batch.acceptance()
    return counts["accepted"] / counts["proposed"]


def test_answers_are_those_without_a_draft_alone_and_in_a_crowd(engine, drafted):
    """Penalties, seeds, top-k, top-p, images, guidance and JSON included."""
    plain = fresh(engine)
    expected = [run(plain, [job_of(plain, *request)])[0] for request in requests()]
    alone = [run(drafted, [job_of(drafted, p, s, stride=1 + n % 5)])[0] for n, (p, s) in enumerate(requests())]
    assert acceptance(drafted) > 0.4
    crowd = [(number, *request) for number, request in enumerate(requests())]
    random.Random(3).shuffle(crowd)
    others = fresh(drafted)
    answers = run(others, [job_of(others, p, s) for _, p, s in crowd])
    for a, b in zip(alone, expected, strict=True):
        assert_same(a, b)
    for (number, *_), answer in zip(crowd, answers, strict=True):
        assert_same(answer, expected[number])


@pytest.mark.parametrize("name", ["itself", "lookup", "other"])
def test_any_proposal_leaves_the_answer_as_it_is(engine, name):
    prompts = [user("x 12 y 34; x 12 y 34; x 12"), user("Transcribe. forty seven")]
    samplings = [Sampling(max_tokens=40), Sampling(max_tokens=40, temperature=0.7, top_p=0.95, seed=3)]
    draft = {"itself": perturbed(engine, 0), "lookup": LOOKUP, "other": perturbed(engine, 3.0)}[name]
    own, plain = replace(engine, draft=draft), fresh(engine)
    for prompt, sampling in zip(prompts, samplings, strict=True):
        assert own.generate([prompt], sampling) == plain.generate([prompt], sampling)
    if name == "itself":
        assert acceptance(own) == 1
    if name == "other":
        assert acceptance(own) < 0.2


def test_nothing_is_left_of_rejected_tokens(engine, drafted):
    """Pages are free after the answers, and a prompt that continues an answer is read from the cache with the same result."""
    own = fresh(drafted)
    sampling = Sampling(max_tokens=2 * 128, temperature=1.0, seed=5, stop=("no such words",))
    first = own.generate([user(LONG)], sampling)[0]
    assert first == fresh(engine).generate([user(LONG)], sampling)[0]
    batch = own.batch
    assert not any(pool.held for pages in (batch.pages, batch._draft_pages) for pool in pages.pools)
    assert batch._draft_pages._committed == [0] * len(batch._draft_pages.pools) and not batch._drafts
    read = batch.proposed
    again = own.generate([user(LONG)], sampling)[0]
    assert again.cached_tokens and replace(again, cached_tokens=0) == first and batch.proposed > read


def test_a_draft_that_was_idle_reads_what_it_has_missed(drafted):
    """The draft proposes nothing while the batch is large, and afterwards again."""
    own = fresh(drafted)
    job = job_of(own, user("x 12"), Sampling(max_tokens=90, temperature=1.0, seed=2, stop=("no such words",)))
    expected = fresh(drafted).generate([user("x 12")], job.sampling)[0]
    own.batch.add(job)
    limit, own.batch.max_drafted = own.batch.max_drafted, 0
    for _ in range(40):
        own.batch.step()
    assert not own.batch.proposed
    own.batch.max_drafted = limit
    while own.batch.step():
        pass
    assert own.batch.proposed and own.batch.accepted
    assert_same(job.items[-1], expected)


def test_a_thought_that_is_cut_is_cut_at_the_same_token(drafted, engine):
    """A limit of tokens until the host must look is kept, whatever was accepted."""
    own = replace(engine, draft=perturbed(engine, 0))
    for limit in (1, 2, 3, 7):
        job = job_of(own, user("x 12"), Sampling(max_tokens=limit))
        assert run(own, [job])[0].answer_tokens == limit


# ── the rule of acceptance ───────────────────────────────────────────────────────────────────────────────────────────


def _kept(p: np.ndarray, s: Sampling) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, computed one by one."""
    p = p ** (1 / s.temperature) / (p ** (1 / s.temperature)).sum()
    order = np.argsort(-p)
    order = order[: s.top_k or len(p)]
    q = p[order] / p[order].sum()
    q = q * (np.cumsum(q) - q < s.top_p)
    out = np.zeros_like(p)
    out[order] = q / q.sum()
    return out


@pytest.mark.parametrize("s", [Sampling(1.0), Sampling(0.7, top_k=3), Sampling(1.4, top_p=0.8)], ids=["1", "k", "p"])
def test_the_chosen_token_has_the_distribution_of_the_target_and_that_of_the_draft_agrees(s):
    """Over 40,000 seeds: frequencies of target and draft, and how often they agree beside the bound for one noise for both."""
    number = 40_000
    p, q = (np.array(a) for a in ([0.42, 0.25, 0.15, 0.1, 0.06, 0.02], [0.3, 0.35, 0.05, 0.15, 0.05, 0.1]))
    settings = jax.tree.map(lambda a: jnp.broadcast_to(a, (number,)), stack([s]))
    settings = replace(settings, seed=jnp.arange(number, dtype=jnp.int32))
    steps = jnp.full(number, 4)
    tokens = [np.asarray(sample(jnp.broadcast_to(jnp.log(a), (number, 6)), settings, steps)) for a in (p, q)]
    expected = [_kept(a, s) for a in (p, q)]
    for of_model, wanted in zip(tokens, expected, strict=True):
        counts = np.bincount(of_model, minlength=6)
        assert not counts[wanted == 0].any()
        inside = wanted > 0
        chi_squared = ((counts[inside] - number * wanted[inside]) ** 2 / (number * wanted[inside])).sum()
        # Of 5 degrees of freedom, one time in 10,000.
        assert chi_squared < 25.7
    distance = 0.5 * np.abs(expected[0] - expected[1]).sum()
    agreement = (tokens[0] == tokens[1]).mean()
    assert (1 - distance) / (1 + distance) - 0.01 < agreement < 1 - distance + 0.01


def test_continuations_have_the_distribution_of_the_target(engine):
    """Pairs of tokens of 64 seeds with a bad draft are those without a draft, and so are their frequencies."""
    own = replace(engine, draft=perturbed(engine, 0.5))
    samplings = [Sampling(max_tokens=2, temperature=1.5, top_k=3, seed=seed, logprobs=0) for seed in range(64)]
    pairs = [
        [tuple(t.token for t in a.logprobs) for a in e.generate([user("x 12")] * 64, samplings)]
        for e in (own, fresh(engine))
    ]
    assert pairs[0] == pairs[1] and len(Counter(pairs[0])) > 4


# ── what a draft must be, and the server ─────────────────────────────────────────────────────────────────────────────


def test_a_draft_has_the_vocabulary_of_its_target(tiny_folder, tiny, encoder, tmp_path):
    lines = ["Another text entirely; 56 78\n", "The sheep graze.\n"] * 40
    words = tokenizer.TextTokenizer.from_bytes(tokenizer.train(lines, encoder.vocabulary.num_text))
    other = write_tiny(tmp_path / "other", replace(encoder, tokenizer=words), tiny)
    with pytest.raises(ValueError, match=r"other: a draft must have the vocabulary .* or lookup"):
        Engine.load(tiny_folder, draft=DraftSource(other))
    with pytest.raises(ValueError, match="17; 1 to 16"):
        DraftSource(other, 17)
    draft = Engine.load(tiny_folder, draft=DraftSource(tiny_folder, 2)).draft
    assert draft and draft.config.vision is None and draft.params.audio is None and draft.tokens == 2


def test_health_and_metrics_show_what_was_accepted(drafted):
    own = fresh(drafted)
    own.generate([user("x 12")], Sampling(max_tokens=20))
    with running(own, "tiny") as address, urlopen(f"{address}/healthz") as health:
        assert json.load(health)["draft"] == own.batch.acceptance()
        with urlopen(f"{address}/metrics") as metrics:
            text = metrics.read().decode()
    assert f"alhena_draft_tokens_total {float(own.batch.proposed)}" in text
    assert f"alhena_accepted_draft_tokens_total {float(own.batch.accepted)}" in text


def test_nothing_compiles_after_the_warm_up(engine):
    own = replace(engine, draft=perturbed(engine, 0.2))
    own.generate([user("x 12"), user(LONG)], Sampling(max_tokens=2, temperature=1.0))
    for rows in own.batch.row_sizes:
        own.batch.warm_up(rows)
    compiled = [f._cache_size() for f in (run_rounds, run_steps, read_chunks)]
    own.generate([user("x 12"), user(LONG)], Sampling(max_tokens=20))
    own.generate([user("x 12")], [Sampling(max_tokens=20, temperature=1.0, logprobs=2)])
    own.generate([user("Hello")], [Sampling(max_tokens=4, output=SCHEMA)])
    assert compiled == [f._cache_size() for f in (run_rounds, run_steps, read_chunks)]
