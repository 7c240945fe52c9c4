"""The engine: an answer is the same alone and in a crowd, bitwise; cached = full forward; prefixes, penalties, limits, cancellation."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.content import Content, Image, Part, Text, Thought
from alhena.model import model
from alhena.model.attention import native
from alhena.model.attention.paged_cache import PAGE, kinds, page_bytes
from alhena.serve.answer import Answer, Overloaded, Unavailable
from alhena.serve.decoding.pages import PagePlan, Pages
from alhena.serve.decoding.sampling.sampler import OutputFormat, Sampling
from alhena.serve.engine import Engine, Prompt, _LocalJob
from alhena.serve.scheduler import Scheduler
from alhena.tokens.examples.padding import padded_batch
from tests.compiled import fully_optimized
from tests.conftest import random_audio, random_image
from tests.serve.imported_models import write_imported

LONG = "What colour is the circle? red " * 24
SCHEMA = OutputFormat(json_schema='{"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}')


@pytest.fixture(scope="session")
def engine(tiny_engine: Engine) -> Engine:
    return tiny_engine


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_imported("gemma4_small", tmp_path_factory.mktemp("gemma4")))


def user(*parts: Part | str) -> list[Content]:
    return [Content("user", tuple(Text(p) if isinstance(p, str) else p for p in parts))]


def requests() -> list[tuple[list[Content], Sampling]]:
    """One of each kind; all with log-probabilities, so that not only the tokens are compared."""
    greedy = Sampling(max_tokens=20, logprobs=3)
    return [
        (user("Draw a red circle."), greedy),
        (user(LONG, random_image(1), "What shape is red?"), replace(greedy, max_tokens=40)),
        (user(random_audio(2), "Transcribe."), replace(greedy, temperature=1.0, seed=7)),
        (user("Draw a blue star."), replace(greedy, image_first=True, guidance=3.0, max_tokens=75)),
        (user("x 12 y 34"), replace(greedy, temperature=1.3, top_k=9, seed=8, presence_penalty=1.0)),
        (user("x 12 y 34"), replace(greedy, output=SCHEMA, max_tokens=30)),
        (user(LONG * 3, "Transcribe."), replace(greedy, temperature=0.8, top_p=0.9, seed=9)),
    ]


def run(engine: Engine, jobs: list[_LocalJob]) -> list[Answer]:
    for job in jobs:
        engine.batch.add(job)
    while engine.batch.step():
        pass
    return [job.items[-1] for job in jobs]


def job_of(engine: Engine, prompt: list[Content], sampling: Sampling, stride: int = 1) -> _LocalJob:
    return _LocalJob(engine.encode(prompt, sampling), sampling, stride=stride)


@fully_optimized
def test_an_answer_is_the_same_alone_and_in_a_crowd_bitwise(engine):
    """Sizes that the compiled kernels take, so that the sequence alone is computed in a batch of another size."""
    decoder = replace(engine.config.decoder, head_dim=32, window=PAGE + 9, global_every=2)
    c = replace(engine.config, decoder=decoder)
    engine = replace(engine, config=c, params=model.init(jax.random.key(5), c))
    assert engine.batch.row_sizes == ((1, 2, 4, 8, 16) if native.is_available() else (16,))
    alone = [run(engine, [job_of(engine, *request)])[0] for request in requests()]
    assert any(isinstance(part, Image) for part in alone[3].content.parts)
    assert all(len(answer.logprobs) == answer.answer_tokens > 3 for answer in alone)
    crowd = [(number, *request) for number, request in enumerate(requests() * 4)]
    random.Random(3).shuffle(crowd)
    others = Engine(engine.params, engine.config, engine.encoder, engine.image_decoder, "another cache")
    answers = run(others, [job_of(others, p, s, stride=1 + n % 5) for n, p, s in crowd])
    for (number, *_), answer in zip(crowd, answers, strict=True):
        expected = alone[number % len(alone)]
        assert replace(answer, cached_tokens=0) == replace(expected, cached_tokens=0)
    assert not any(pool.held for pool in others.batch.pages.pools)
    assert others.batch.is_idle and others.batch.has_free_slot


def least_cache_bytes(engine: Engine) -> int:
    """Bytes of a cache for one context."""
    c = engine.config
    pages = zip(engine.page_plan.minimum, kinds(c.decoder), strict=True)
    return sum(count * page_bytes(kind, c.compute_dtype) for count, kind in pages)


@pytest.mark.parametrize("family", ["gemma3_vision", "gemma4_small", "gemma4_moe"])
def test_paged_pieces_equal_the_full_forward_pass(family, gemma4, tmp_path):
    """Log-probabilities of an answer whose prompt is read in several pieces, images included, without a cache.

    The cache has the fewest pages for a context: those that leave the windows of the local layers are written again.
    """
    engine = gemma4 if family == "gemma4_small" else Engine.load(write_imported(family, tmp_path), slots=4)
    engine = replace(engine, cache_bytes=least_cache_bytes(engine))
    images = [random_image(1, 48, 48)] if engine.config.vision else []
    prompt = user("is it so? " * 30, *images, "the lambs " * 100)
    answer = engine.generate([prompt], Sampling(max_tokens=12, logprobs=5))[0]
    example = engine.encode(prompt)
    start, tokens = len(example.tokens), [t.token for t in answer.logprobs]
    assert start > 2 * PAGE
    # Where attention is causal, a chunk is a page, and a window of a few tokens needs three.
    if engine.config.decoder.image_attention == "causal":
        assert engine.page_plan.counts[1] == 3 < start // PAGE
    length = start + len(tokens)
    batch = padded_batch([example], length, len(example.patches), 0)
    batch.tokens[0, start:] = tokens
    batch.segments[0], batch.positions[0] = 1, np.arange(length)
    hidden = jax.jit(model.forward, static_argnums=1)(engine.params, engine.config, jax.tree.map(jnp.asarray, batch))
    scores = jax.nn.log_softmax(model.logits(engine.params, engine.config, hidden[0, start - 1 : -1]), -1)
    scores = np.asarray(scores)
    for row, of_token in zip(scores, answer.logprobs, strict=True):
        np.testing.assert_allclose(of_token.logprob, row[of_token.token], atol=2e-4)
        np.testing.assert_allclose([value for _, value in of_token.top], np.sort(row)[::-1][:5], atol=2e-4)


def test_penalties_lower_the_scores_of_tokens_of_the_answer(engine):
    plain, other = (
        engine.generate([user("x 12")], Sampling(max_tokens=16, logprobs=20, presence_penalty=p, frequency_penalty=f))[
            0
        ]
        for p, f in ((0.0, 0.0), (0.6, 0.9))
    )
    assert [t.token for t in plain.logprobs] != [t.token for t in other.logprobs]
    seen: dict[int, int] = {}
    for of_token in other.logprobs:
        # Raw values: what is sampled is the largest after the penalties.
        candidates = {t: v for t, v in of_token.top if t < engine.encoder.vocabulary.num_text}
        candidates[of_token.token] = of_token.logprob
        penalized = {t: v - 0.6 * (t in seen) - 0.9 * seen.get(t, 0) for t, v in candidates.items()}
        assert max(penalized, key=penalized.__getitem__) == of_token.token
        seen[of_token.token] = seen.get(of_token.token, 0) + 1


# ── prefixes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def fresh(engine: Engine, **settings: object) -> Engine:
    """The same engine with a cache of its own."""
    return replace(engine, **settings)


def test_a_known_beginning_is_not_read_again_and_changes_nothing(engine):
    sampling = Sampling(max_tokens=8, logprobs=2)
    first, second, third = (user(random_image(n), LONG, end) for n, end in ((1, "a"), (1, "b"), (2, "b")))
    cold = [fresh(engine).generate([prompt], sampling)[0] for prompt in (second, third)]
    warm = fresh(engine)
    assert warm.generate([first], sampling)[0].cached_tokens == 0
    again, other = (warm.generate([prompt], sampling)[0] for prompt in (second, third))
    length = len(warm.encode(second).tokens)
    assert length - PAGE <= again.cached_tokens < length
    # The image is another.
    assert other.cached_tokens == 0
    assert [replace(a, cached_tokens=0) for a in (again, other)] == cold


def test_a_sliding_window_shares_beginnings_too(gemma4):
    sampling, prompt = Sampling(max_tokens=8, logprobs=2), user("the lambs " * 200)
    cold, warm = (fresh(gemma4).generate([prompt], sampling)[0], fresh(gemma4))
    warm.generate([user("the lambs " * 199, "is")], sampling)
    again = warm.generate([prompt], sampling)[0]
    assert again.cached_tokens > 2 * PAGE
    assert replace(again, cached_tokens=0) == cold
    assert max(len(pool._free) for pool in warm.batch.pages.pools) < warm.batch.pages.pools[0].count


def test_a_pinned_prefix_stays_until_it_is_freed():
    pages = Pages(PagePlan((4, 3), (2, 2), (None, 5), 2 * PAGE))
    keys = [b"a", b"b"]
    with pytest.raises(ValueError, match="room for 128 tokens of kept prompts"):
        pages.pin(keys)
    pages.pin(keys[:1])
    for kind, pool in enumerate(pages.pools):
        pool.register(b"a", page := pages.take(kind))
        pool.release(page)
        for _ in range(pool.count - 1):
            pages.take(kind)
        with pytest.raises(StopIteration):
            pages.take(kind)
    assert pages.known(keys, 0, [1]) == 1
    pages.unpin(keys[:1])
    assert [pages.take(kind) for kind in range(2)] and pages.known(keys, 0, [1]) == 0


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_ends_with_the_context(engine):
    small = fresh(engine, cache_bytes=0)
    assert small.max_prompt_tokens == PAGE
    prompt = user("x 12 y 34; " * 8)
    answer = small.generate([prompt], Sampling(max_tokens=4000, temperature=1.0, stop=("no such words",)))[0]
    if answer.finish == "length":
        assert answer.prompt_tokens + answer.answer_tokens == PAGE
    with pytest.raises(ValueError, match="at most 128"):
        small.encode(user(LONG))


def test_a_thought_is_closed_after_its_budget(gemma4):
    e, controls = gemma4.encoder, gemma4.encoder.settings.controls
    opened = [controls["channel"], *e.tokenizer.encode("thought\n")]
    example = gemma4.encode(Prompt(tuple(user("is it so? " * 12)), thinking=True))
    example = example.with_tokens(np.append(example.tokens, opened))
    end = gemma4.thought_end()
    for budget in (3, 9):
        *_, answer = gemma4.stream(example, Sampling(max_tokens=24, thinking_budget=budget, logprobs=0))
        assert isinstance(answer, Answer)
        assert [t.token for t in answer.logprobs][budget : budget + len(end)] == list(end)
        assert answer.thought_tokens == budget + len(end)
        assert [type(part) for part in answer.content.parts] == [Thought, Text]
    *_, unlimited = gemma4.stream(example, Sampling(max_tokens=24))
    assert unlimited.thought_tokens == 24


def test_a_long_prompt_does_not_stall_a_running_answer(engine):
    batch = fresh(engine).batch
    running = job_of(engine, user("Hello"), Sampling(max_tokens=60, temperature=1.0, logprobs=0))
    batch.add(running)
    for _ in range(3):
        batch.step()
    long = job_of(engine, user(LONG * 8), Sampling(max_tokens=2))
    batch.add(long)
    answering = batch._running[0]
    while not long.items:
        before = answering.parser.count
        batch.step()
        assert answering.parser.count == before + 1 or isinstance(running.items[-1], Answer)
    assert answering.parser.count > len(long.example.tokens) // PAGE


def test_a_cancelled_job_frees_its_slot_and_a_failing_one_harms_no_other(engine):
    own = fresh(engine)
    healthy, cancelled, failing = (job_of(own, user("x 12"), Sampling(max_tokens=30)) for _ in range(3))
    for job in (healthy, cancelled, failing):
        own.batch.add(job)
    own.batch.step()
    own.batch._running[2].parser.feed = lambda token: 1 / 0  # type: ignore[method-assign]
    cancelled.cancelled = True
    while own.batch.step():
        pass
    assert isinstance(cancelled.items[-1], Unavailable)
    assert str(failing.items[-1]) == "the model failed to answer"
    assert healthy.items[-1] == own.generate([user("x 12")], Sampling(max_tokens=30))[0]
    assert len(own.batch._free) == own.slots and not any(pool.held for pool in own.batch.pages.pools)


def test_a_failed_program_ends_the_jobs_it_had_and_the_next_is_answered(engine, monkeypatch):
    own = fresh(engine)
    job = job_of(own, user("x 12"), Sampling(max_tokens=30))
    own.batch.add(job)
    own.batch.step()
    with monkeypatch.context() as patch:
        patch.setattr("alhena.serve.decoding.slots.run_steps", lambda *_: 1 / 0)
        own.batch.step()
    assert str(job.items[-1]) == "the model failed to answer"
    same = (user("x 12"), Sampling(max_tokens=30))
    assert own.generate([same[0]], same[1]) == engine.generate([same[0]], same[1])


def test_after_an_interrupt_in_the_middle_of_a_step_the_next_is_answered(engine, monkeypatch):
    own, request = fresh(engine), (user("x 12"), Sampling(max_tokens=8))

    def interrupt(*arguments):
        for leaf in jax.tree.leaves(arguments[3]):
            leaf.delete()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("alhena.serve.decoding.slots.run_steps", interrupt)
        own.generate([request[0]], request[1])
    assert own.generate([request[0]], request[1]) == engine.generate([request[0]], request[1])


# ── the scheduler ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_queue_is_bounded_and_stop_lets_running_answers_end(engine):
    own = fresh(engine)
    expected = own.generate([user("x 12")], Sampling(max_tokens=20))[0]

    async def scenario() -> None:
        scheduler = Scheduler(own, max_waiting=2)
        example, sampling = own.encode(user("x 12")), Sampling(max_tokens=20)
        generations = [scheduler.submit(example, sampling) for _ in range(2)]
        with pytest.raises(Overloaded):
            scheduler.submit(example, sampling)
        scheduler.start()
        parts = aiter(generations[0])
        await anext(parts)
        await asyncio.to_thread(scheduler.stop)
        with pytest.raises(Unavailable):
            scheduler.submit(example, sampling)
        assert [item async for item in parts][-1] == expected

    asyncio.run(scenario())
