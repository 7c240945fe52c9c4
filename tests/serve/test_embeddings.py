"""Embeddings and tokens, with the real SDK over loopback, at the paths of both APIs."""

from __future__ import annotations

import numpy as np
import pytest
from google import genai
from google.auth.credentials import AnonymousCredentials
from google.genai import errors, types

from alhena.content import Content, Text
from alhena.model import model
from alhena.model.storage.truncated import hidden_states, split_near
from alhena.serve.decoding import buckets
from alhena.serve.embeddings import DEPTHS, Embedder
from tests.conftest import random_image


@pytest.fixture
def client(tiny_address):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))


@pytest.fixture
def vertex(tiny_address):
    options = types.HttpOptions(base_url=tiny_address)
    credentials = AnonymousCredentials()
    credentials.token = "any"
    return genai.Client(
        vertexai=True, project="p", location="us-central1", credentials=credentials, http_options=options
    )


def vectors(response):
    return np.array([embedding.values for embedding in response.embeddings])


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(client, tiny_engine):
    texts = ["A red circle.", "The weather is fine today, and the sea is calm.", "A red circle."]
    out = vectors(client.models.embed_content(model="tiny", contents=texts))
    assert out.shape == (3, tiny_engine.config.decoder.width)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(out[0], out[2], atol=1e-6)
    np.testing.assert_allclose(
        out[1], vectors(client.models.embed_content(model="tiny", contents=texts[1]))[0], atol=1e-4
    )
    assert out[0] @ out[1] < 0.99
    config = types.EmbedContentConfig(output_dimensionality=10, task_type="RETRIEVAL_DOCUMENT", title="Shapes")
    short = vectors(client.models.embed_content(model="tiny", contents=texts, config=config))
    assert short.shape == (3, 10) and abs(short[0] @ out[0, :10]) < 0.9999
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)


def test_the_vector_is_made_of_the_hidden_states_of_three_depths(tiny_engine):
    embedder, c = Embedder(tiny_engine), tiny_engine.config
    example = embedder.encode(Content("document", (Text("A red circle."),)))
    assert embedder.depths == tuple(split_near(c.decoder, share * c.decoder.layers) for share in DEPTHS)
    assert embedder.depths[-1] == c.decoder.layers
    mean, spread = embedder.statistics
    total = np.zeros(c.decoder.width)
    for i, layers in enumerate(embedder.depths):
        hidden = np.asarray(hidden_states(tiny_engine.params, c, buckets.padded([example]), layers))[0]
        scaled = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
        z = (scaled[1 : len(example.tokens)].mean(0) - mean[i, 0]) / spread[i, 0]
        total += z / np.linalg.norm(z)
    np.testing.assert_allclose(embedder.standardized([example])[0], total, atol=2e-3)


def test_the_first_layers_are_those_of_the_whole_decoder(tiny_engine):
    """All layers by the truncated decoder are the decoder; fewer give something else."""
    c, batch = tiny_engine.config, buckets.padded([tiny_engine.encode([Content("user", (Text("Hello"),))])])
    whole = np.asarray(model.decoder_output(tiny_engine.params, c, batch))
    np.testing.assert_allclose(hidden_states(tiny_engine.params, c, batch, c.decoder.layers), whole, atol=1e-5)
    assert np.abs(np.asarray(hidden_states(tiny_engine.params, c, batch, 1)) - whole).max() > 0.01


def test_images_have_embeddings(client):
    parts = [types.Part.from_bytes(data=random_image(i).data, mime_type="image/png") for i in (1, 2)]
    out = vectors(client.models.embed_content(model="tiny", contents=[types.Content(parts=[part]) for part in parts]))
    assert len(out) == 2 and out[0] @ out[1] < 0.999


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output_dimensionality": 100_000}, "outputDimensionality is 100000"),
        ({"task_type": "COOKING"}, "taskType is 'COOKING'"),
    ],
)
def test_options_out_of_range_are_refused(client, config, message):
    with pytest.raises(errors.ClientError, match=message):
        client.models.embed_content(model="tiny", contents="x", config=config)


def test_an_empty_text_and_one_that_is_too_long_are_refused(client):
    for text in ("", "word " * 40_000):
        with pytest.raises(errors.ClientError) as error:
            client.models.embed_content(model="tiny", contents=[types.Content(parts=[types.Part(text=text)])])
        assert error.value.code == 400


def test_vertex_ai_generates_counts_and_embeds_at_its_paths(vertex, client):
    config = types.GenerateContentConfig(max_output_tokens=3)
    for name in ("tiny", "publishers/google/models/tiny"):
        there = vertex.models.generate_content(model=name, contents="Hello", config=config)
        assert there.text == client.models.generate_content(model="tiny", contents="Hello", config=config).text
    streamed = list(vertex.models.generate_content_stream(model="tiny", contents="Hello", config=config))
    assert "".join(event.text for event in streamed) == there.text
    assert vertex.models.count_tokens(model="tiny", contents="Hello").total_tokens > 0
    out = vectors(vertex.models.embed_content(model="tiny", contents="Hello"))
    np.testing.assert_allclose(out, vectors(client.models.embed_content(model="tiny", contents="Hello")), atol=1e-5)
    with pytest.raises(errors.APIError) as error:
        vertex.caches.list()
    assert (error.value.code, error.value.status) == (501, "UNIMPLEMENTED")


def test_the_bytes_of_the_tokens_are_the_text(vertex, tiny_engine):
    text = "A red circle,\n这 und 🤪."
    out = vertex.models.compute_tokens(model="tiny", contents=[types.UserContent(text), types.ModelContent("blue")])
    assert [info.role for info in out.tokens_info] == ["user", "model"]
    assert b"".join(out.tokens_info[0].tokens).decode() == text
    assert out.tokens_info[0].token_ids == tiny_engine.encoder.tokenizer.encode(text)
