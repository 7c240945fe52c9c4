"""The sampler, the grammar, streaming, and the official SDK against the real server over loopback."""

from __future__ import annotations

from dataclasses import replace

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.content import Content, Image, Text
from alhena.media import decode_image
from alhena.model import model
from alhena.serve.decoding.sampling import image_grammar
from alhena.serve.decoding.sampling.sampler import Sampling, sample, stack
from alhena.serve.engine import Answer, Engine
from alhena.serve.gemini.app import example_request
from alhena.tokens.examples.padding import padded_batch
from alhena.tokens.vocabulary import Vocabulary
from tests.conftest import random_audio, random_image

V = Vocabulary(num_text=40, num_codes=16)


allowed_tokens = jax.jit(image_grammar.allowed_tokens, static_argnums=(1, 2))
advance = jax.jit(image_grammar.advance, static_argnums=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 6, 40]))
def test_every_sampled_grid_is_complete(seed, max_codes):
    marks = [V.control(name) for name in ("<call>", "<quote>", "<call_end>")]
    rng, state, tokens = np.random.default_rng(seed), image_grammar.start(1), []
    for _ in range(120):
        allowed = np.flatnonzero(np.asarray(allowed_tokens(state, V, max_codes))[0])
        assert len(allowed)
        # Tokens of images are preferred.
        preferred = [t for t in allowed if not t < V.num_text] or allowed
        token = int(rng.choice(preferred if rng.random() < 0.8 else allowed))
        tokens.append(token)
        state = advance(state, jnp.array([token], jnp.int32), V)
    i = 0
    while i < len(tokens):
        if tokens[i] != V.control("<boi_out>"):
            assert tokens[i] < V.num_text or tokens[i] in (V.end, *marks)
            i += 1
            continue
        grid = tokens[i + 1 : i + 3]
        if len(grid) < 2:
            break
        n, m = grid[0] - V.rows(1) + 1, grid[1] - V.columns(1) + 1
        assert 1 <= n * m <= max_codes
        rest = tokens[i + 3 : i + 4 + n * m]
        assert all(V.is_code(t) for t in rest[: n * m])
        assert rest[n * m :] in ([V.control("<eoi_out>")], [])
        i += 4 + n * m


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (3, 1.0, 0.7), (0, 0.6, 1.3)])
def test_samples_follow_the_distribution(top_k, top_p, temperature):
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    p = np.exp(logits / temperature)
    p /= p.sum()
    kept = np.arange(5) < (top_k or 5)
    q = np.where(kept, p, 0) / p[kept].sum()
    kept &= np.cumsum(q) - q < top_p
    q = np.where(kept, q, 0) / q[kept].sum()
    n = 4000
    settings = stack([Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=i) for i in range(n)])
    batch = jnp.tile(jnp.asarray(logits, jnp.float32), (n, 1))
    tokens = np.asarray(jax.jit(sample)(batch, settings, jnp.zeros(n, jnp.int32)))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / n, q, atol=0.03)


@pytest.fixture(scope="session")
def engine(tiny_engine: Engine) -> Engine:
    return tiny_engine


PROMPTS = [
    (Text("Draw a red circle."),),
    (random_image(1), Text("What shape is red?")),
    (random_audio(2), Text("Transcribe.")),
    (random_image(3), random_audio(4)),
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_answer_equals_a_batched_one_and_one_alone(engine, temperature):
    sampling = Sampling(temperature=temperature, max_tokens=24, seed=5)
    prompts = [[Content("user", parts)] for parts in PROMPTS]
    together = engine.generate(prompts, sampling)
    for prompt, whole in zip(prompts, together, strict=True):
        assert engine.generate([prompt], sampling) == [whole]
        *parts, last = engine.stream(prompt, sampling)
        assert last == whole
        assert isinstance(last, Answer)
        assert "".join(p.text for p in parts if isinstance(p, Text)) == "".join(
            p.text for p in whole.content.parts if isinstance(p, Text)
        )
        assert [p for p in parts if isinstance(p, Image)] == [p for p in whole.content.parts if isinstance(p, Image)]


def test_guidance_of_one_changes_nothing(engine):
    prompt = [[Content("user", PROMPTS[0])]]
    plain, nearly = (Sampling(max_tokens=80, image_first=True, guidance=g) for g in (1.0, 1.0000001))
    images = [engine.generate(prompt, s)[0].content.parts[0] for s in (plain, nearly)]
    assert isinstance(images[0], Image)
    assert images[0] == images[1]


def test_guided_codes_are_those_of_the_guided_logits_of_the_full_forward_pass(engine):
    """Each code is the most likely by uncond + g · (cond - uncond), both computed without a cache."""
    v, strength = engine.encoder.vocabulary, 20.0
    prompts = [engine.encoder.prompt([Content("user", parts)]) for parts in (PROMPTS[1], ())]
    sampling = Sampling(max_tokens=70, image_first=True, guidance=strength, aspect=2.0, logprobs=0)
    answer = engine.generate([[Content("user", PROMPTS[1])]], sampling)[0]
    tokens = np.array([of_token.token for of_token in answer.logprobs])
    codes = np.flatnonzero([v.is_code(t) for t in tokens.tolist()])
    assert len(codes) == 60
    tokens = tokens[: codes[-1] + 1]
    batch, positions = padded_batch(prompts, 128, 64, 0), []
    for row, example in enumerate(prompts):
        start = len(example.tokens)
        batch.tokens[row, start : start + len(tokens)] = tokens
        batch.segments[row], batch.positions[row] = np.arange(128) < start + len(tokens), np.arange(128)
        positions.append(start + codes - 1)
    hidden = jax.jit(model.forward, static_argnums=1)(engine.params, engine.config, jax.tree.map(jnp.asarray, batch))
    conditional, unconditional = (
        model.logits(engine.params, engine.config, hidden[row, at]) for row, at in enumerate(positions)
    )
    guided = np.array(unconditional + strength * (conditional - unconditional))[:, v.first_code :]
    chosen = guided[np.arange(len(codes)), tokens[codes] - v.first_code]
    np.testing.assert_allclose(chosen, guided.max(-1), atol=1e-4)
    assert np.any(np.asarray(conditional)[:, v.first_code :].argmax(-1) != tokens[codes] - v.first_code)


@pytest.mark.parametrize(("aspect", "pixels"), [(2.0, (48, 80)), (0.5, (80, 48)), (8.0, (24, 168))])
def test_images_have_the_requested_aspect_ratio(engine, aspect, pixels):
    sampling = Sampling(max_tokens=80, image_first=True, aspect=aspect)
    answer = engine.generate([[Content("user", PROMPTS[0])]], sampling)[0]
    part = answer.content.parts[0]
    assert isinstance(part, Image)
    assert decode_image(part.data).shape[:2] == pixels


@pytest.fixture(scope="session")
def address(tiny_address: str) -> str:
    return tiny_address


@pytest.fixture(params=["v1", "v1beta"])
def client(request, address: str) -> genai.Client:
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=address, api_version=request.param))


def test_the_sdk_generates_streams_and_counts(client, engine):
    image_part = types.Part.from_bytes(data=random_image(1).data, mime_type="image/png")
    audio_part = types.Part.from_bytes(data=random_audio(2).data, mime_type="audio/flac")
    config = types.GenerateContentConfig(max_output_tokens=12, temperature=0.0, top_k=4)
    request = {"model": "tiny", "contents": [image_part, audio_part, "What shape is red?"], "config": config}
    whole = client.models.generate_content(**request)
    ours = engine.generate(
        [[Content("user", (random_image(1), random_audio(2), Text("What shape is red?")))]], Sampling(max_tokens=12)
    )[0]
    assert (whole.text or "") == "".join(p.text for p in ours.content.parts if isinstance(p, Text))
    assert whole.usage_metadata.prompt_token_count == ours.prompt_tokens
    details = {d.modality.value: d.token_count for d in whole.usage_metadata.prompt_tokens_details}
    assert set(details) == {"TEXT", "IMAGE", "AUDIO"}
    assert sum(details.values()) == ours.prompt_tokens
    events = list(client.models.generate_content_stream(**request))
    assert "".join(event.text or "" for event in events) == (whole.text or "")
    assert events[-1].candidates[0].finish_reason == whole.candidates[0].finish_reason
    counted = client.models.count_tokens(model="tiny", contents=request["contents"])
    assert counted.total_tokens == ours.prompt_tokens


def test_the_sdk_receives_an_image(client):
    config = types.GenerateContentConfig(
        response_modalities=["IMAGE"], max_output_tokens=120, image_config=types.ImageConfig(aspect_ratio="16:9")
    )
    answer = client.models.generate_content(model="tiny", contents="Draw a red circle.", config=config)
    blob = answer.candidates[0].content.parts[0].inline_data
    assert blob.mime_type == "image/png"
    assert decode_image(blob.data).shape[:2] == (48, 80)


def test_the_example_of_the_start_is_one_that_the_model_can_answer(engine):
    assert "Draw" in example_request(engine)
    assert "Draw" not in example_request(replace(engine, image_decoder=None))


def test_the_sdk_lists_the_model(client):
    assert [model.name for model in client.models.list()] == ["models/tiny"]
    assert client.models.get(model="tiny").name == "models/tiny"


def test_bad_requests_get_errors_in_googles_format(client, address):
    with pytest.raises(errors.ClientError) as missing:
        client.models.generate_content(model="other", contents="hi")
    assert (missing.value.code, missing.value.status) == (404, "NOT_FOUND")
    broken = types.Part.from_bytes(data=random_image(1).data[:60], mime_type="image/png")
    with pytest.raises(errors.ClientError, match=r"contents\[0\].parts\[1\].inlineData: the image cannot be decoded"):
        client.models.generate_content(model="tiny", contents=["What is this?", broken])
    url = f"{address}/v1beta/models/tiny:generateContent"
    for body, word in (
        (b"{", "not JSON"),
        (b'{"contents": 3}', "contents must be"),
        (b'{"contents": [{"parts": [{"fly": 1}]}]}', "parts"),
    ):
        answer = httpx.post(url, content=body)
        assert answer.status_code == 400
        assert word in answer.json()["error"]["message"]
    for ratio in ("wide", "1:0", "100:1", 3):
        settings = {"imageConfig": {"aspectRatio": ratio}}
        answer = httpx.post(url, json={"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": settings})
        assert answer.status_code == 400
        assert "aspect" in answer.json()["error"]["message"]
    hot = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"temperature": 99}}
    assert "temperature" in httpx.post(url, json=hot).json()["error"]["message"]
