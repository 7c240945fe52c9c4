"""generateContent with all of its fields: the official SDK over loopback against a tiny random model."""

from __future__ import annotations

import json

import httpx
import pytest
from google import genai
from google.genai import errors, types

from tests.conftest import random_image
from tests.serve.pdfs import make_pdf

PNG = types.Part.from_bytes(data=random_image(1).data, mime_type="image/png")
SCHEMA = {"type": "OBJECT", "properties": {"on": {"type": "BOOLEAN"}}, "required": ["on"]}
JSON = {"response_mime_type": "application/json", "max_output_tokens": 60}


@pytest.fixture(scope="module")
def client(tiny_address):
    return genai.Client(api_key="any", http_options=types.HttpOptions(base_url=tiny_address))


def config(**settings):
    return types.GenerateContentConfig(**({"max_output_tokens": 12, "temperature": 1, "seed": 5} | settings))


def ask(client, contents="Hello", **settings):
    return client.models.generate_content(model="tiny", contents=contents, config=config(**settings))


def streamed(client, contents="Hello", **settings):
    return list(client.models.generate_content_stream(model="tiny", contents=contents, config=config(**settings)))


def test_candidates_are_those_of_the_following_seeds_whole_and_streamed(client):
    got = ask(client, candidate_count=3)
    texts = [candidate.content.parts[0].text for candidate in got.candidates]
    assert texts == [ask(client, seed=5 + n).text for n in range(3)]
    assert got.usage_metadata.candidates_token_count == 36
    events = streamed(client, candidate_count=3)
    for n, text in enumerate(texts):
        candidates = [c for event in events for c in event.candidates if c.index == n]
        assert "".join(c.content.parts[0].text for c in candidates) == text
        assert [c.finish_reason is not None for c in candidates] == [False] * (len(candidates) - 1) + [True]
    assert [event.usage_metadata is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].usage_metadata.candidates_token_count == 36


def test_log_probabilities_are_returned_whole_and_streamed(client):
    whole = ask(client, response_logprobs=True, logprobs=2).candidates[0]
    chosen = whole.logprobs_result.chosen_candidates
    assert len(chosen) == 12 and all(len(top.candidates) == 2 for top in whole.logprobs_result.top_candidates)
    assert whole.avg_logprobs == pytest.approx(sum(c.log_probability for c in chosen) / 12)
    assert whole.avg_logprobs < 0
    last = streamed(client, response_logprobs=True, logprobs=2)[-1].candidates[0]
    assert last.logprobs_result == whole.logprobs_result


def test_answers_are_json_of_a_schema_or_one_of_some_texts(client):
    assert json.loads(ask(client, **JSON, response_schema=SCHEMA).text)["on"] in (True, False)
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    events = streamed(client, **JSON, response_json_schema=schema)
    assert json.loads("".join(event.text for event in events))["a"] in ("x", "y")
    choices = {"type": "STRING", "enum": ["red", "blue"]}
    assert ask(client, response_mime_type="text/x.enum", response_schema=choices).text in ("red", "blue")


def test_a_schema_that_cannot_be_enforced_is_refused_before_the_stream(client):
    with pytest.raises(errors.ClientError, match="responseJsonSchema"):
        streamed(client, **JSON, response_json_schema={"type": "string", "not": {"const": "x"}})


def test_a_resolution_changes_the_tokens_of_an_image(client):
    image = types.Part.from_bytes(data=random_image(1, 64, 64).data, mime_type="image/png")

    def tokens(resolution):
        usage = ask(client, [image, "What?"], media_resolution=resolution, max_output_tokens=1).usage_metadata
        return {d.modality.value: d.token_count for d in usage.prompt_tokens_details}["IMAGE"]

    low, medium, high = (tokens(f"MEDIA_RESOLUTION_{level}") for level in ("LOW", "MEDIUM", "HIGH"))
    assert low < medium < high


def test_tokens_are_counted_as_in_the_answer(client, tiny_address):
    usage = ask(client, [PNG, "What?"]).usage_metadata
    assert client.models.count_tokens(model="tiny", contents=[PNG, "What?"]).total_tokens == usage.prompt_token_count
    body = {"contents": [{"parts": [PNG.model_dump(mode="json", exclude_none=True), {"text": "What?"}]}]}
    counted = httpx.post(f"{tiny_address}/v1/models/tiny:countTokens", json=body).json()
    details = [d.model_dump(mode="json", by_alias=True, exclude_none=True) for d in usage.prompt_tokens_details]
    assert counted == {"totalTokens": usage.prompt_token_count, "promptTokensDetails": details}


def test_files_and_pdfs_are_read(client):
    pdf = types.Part.from_bytes(data=make_pdf(2), mime_type="application/pdf")
    details = ask(client, [pdf, "What?"], max_output_tokens=1).usage_metadata.prompt_tokens_details
    assert [d.modality for d in details] == ["TEXT", "IMAGE"]
    with pytest.raises(errors.ClientError, match="no other address is fetched"):
        ask(client, [types.Part.from_uri(file_uri="https://example.com/x.png", mime_type="image/png"), "What?"])


def test_a_harmful_prompt_is_blocked_where_a_request_asks_for_it(client):
    insult = "You are a worthless stupid idiot and everyone hates you, you disgusting piece of trash."
    setting = [types.SafetySetting(category="HARM_CATEGORY_HARASSMENT", threshold="BLOCK_LOW_AND_ABOVE")]
    for got in (ask(client, insult, safety_settings=setting), streamed(client, insult, safety_settings=setting)[-1]):
        assert got.prompt_feedback.block_reason == "SAFETY" and not got.candidates
    assert ask(client, "What is the capital of France?", safety_settings=setting).prompt_feedback is None
    assert ask(client, insult).candidates[0].safety_ratings is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"thinking_config": {"thinking_budget": 100}}, "thinkingBudget"),
        ({"tools": [{"google_search": {}}]}, "googleSearch"),
        ({"media_resolution": "MEDIA_RESOLUTION_LOW", "response_modalities": ["AUDIO"]}, "AUDIO"),
    ],
)
def test_what_the_model_cannot_do_is_refused(client, settings, named):
    with pytest.raises(errors.ClientError, match=named) as error:
        ask(client, **settings)
    assert error.value.code == 400


def test_clients_that_ask_models_of_any_kind_for_thoughts_are_answered(client):
    thinking = types.ThinkingConfig(include_thoughts=True, thinking_budget=8192)
    assert ask(client, thinking_config=thinking).candidates[0].finish_reason == "MAX_TOKENS"
