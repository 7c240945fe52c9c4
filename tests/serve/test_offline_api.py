"""The offline Gemini API: the official SDK against scripted answers, failures, blocks and broken streams; the plugin; the command."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from alhena.testing import Reply, Thought, ToolCall
from alhena.testing.__main__ import add_rule
from alhena.testing.script import Script
from tests.conftest import random_image

ROOT = Path(__file__).parent.parent.parent
MODEL = "gemini-2.5-flash"


@pytest.fixture
def client(gemini_server):
    """A client as an application makes it: the environment alone names the server."""
    return genai.Client()


def ask(client, text="Hello", **config):
    return client.models.generate_content(model=MODEL, contents=text, config=config or None)


def test_answers_in_line_and_by_rule(client, gemini_server):
    gemini_server.reply("one")
    gemini_server.reply("Bern", when="capital of switzerland")
    gemini_server.reply("a number", when=re.compile(r"\d+"), times=1)
    gemini_server.reply(lambda request: request.text.upper())
    texts = ["What is the capital of Switzerland?", "Hi", "12", "12", "The capital of Switzerland, please."]
    assert [ask(client, text).text for text in texts] == ["Bern", "one", "a number", "12", "Bern"]
    assert [request.text for request in gemini_server.requests] == texts
    assert {(r.model, r.call, r.status) for r in gemini_server.requests} == {(MODEL, "generateContent", 200)}
    assert gemini_server.unused == 0


def test_a_request_without_an_answer_fails_and_is_recorded(client, gemini_server):
    with pytest.raises(errors.ClientError, match="the script has no answer to this request"):
        ask(client)
    gemini_server.otherwise("default")
    assert ask(client).text == "default"
    assert [request.status for request in gemini_server.requests] == [400, 200]


def test_a_refused_request_uses_no_answer(gemini_server):
    gemini_server.reply("kept")
    url = f"{gemini_server.url}/v1beta/models/m:generateContent"
    refused = httpx.post(url, json={"contents": [{"parts": [{"text": "x"}]}], "generationConfigs": {}})
    assert refused.status_code == 400 and "generationConfigs" in refused.text
    assert gemini_server.unused == 1
    assert httpx.post(url, json={"contents": [{"parts": [{"text": "x"}]}]}).status_code == 200


def test_streams_chats_and_async(client, gemini_server):
    gemini_server.reply("It is  red,\n I think.", times=2)
    chat = client.chats.create(model=MODEL)
    events = [event.text for event in chat.send_message_stream("Color?")]
    assert events == ["It ", "is  ", "red,\n ", "I ", "think."]
    assert len(chat.get_history(curated=True)) > 1

    async def stream():
        return [e.text async for e in await client.aio.models.generate_content_stream(model=MODEL, contents="Color?")]

    assert asyncio.run(stream()) == events


def test_automatic_function_calling(client, gemini_server):
    def get_weather(city: str) -> dict[str, int]:
        """The weather of a city."""
        return {"degrees": len(city)}

    gemini_server.reply(Thought("I need the weather."), ToolCall("get_weather", {"city": "Bern"}))
    gemini_server.reply(lambda request: f"{request.tool_results['get_weather']['result']['degrees']} degrees")
    chat = client.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[get_weather]))
    assert chat.send_message("Weather?").text == "4 degrees"
    assert [request.tools for request in gemini_server.requests] == [["get_weather"]] * 2


def test_an_error_in_the_function_of_a_rule_is_shown(client, gemini_server):
    gemini_server.reply(lambda request: request.tool_results["absent"])
    with pytest.raises(errors.ServerError, match="a function of the script failed: KeyError: 'absent'"):
        ask(client)


class City(BaseModel):
    name: str
    people: int


def test_json(client, gemini_server):
    bern = City(name="Bern", people=137_000)
    gemini_server.reply(bern)
    gemini_server.reply({"name": "Bern", "people": "many"})
    config = {"response_mime_type": "application/json", "response_schema": City}
    assert ask(client, **config).parsed == bern
    # An application must cope with an answer that is not of its schema.
    assert ask(client, **config).parsed is None


def test_images_and_parts_of_the_sdk(client, gemini_server):
    image = random_image(1).data
    gemini_server.reply(types.Part(text="Here:"), image, finish="MAX_TOKENS")
    candidate = ask(client, "Draw.").candidates[0]
    assert candidate.content.parts[0].text == "Here:"
    assert candidate.content.parts[1].inline_data.data == image
    assert candidate.finish_reason == types.FinishReason.MAX_TOKENS
    question = [types.Part.from_bytes(data=image, mime_type="image/png"), "What?"]
    gemini_server.reply("A picture.", when="what")
    counted = client.models.generate_content(model=MODEL, contents=question).usage_metadata.prompt_tokens_details
    assert {count.modality.value: count.token_count for count in counted} == {"TEXT": 5, "IMAGE": 256}


def test_embeddings_need_no_script_and_know_common_words(client):
    texts = ["the cat sleeps on the roof", "a cat on a roof sleeps", "prices of wheat rose in May"]
    config = types.EmbedContentConfig(output_dimensionality=256)
    found = client.models.embed_content(model="gemini-embedding-001", contents=texts, config=config).embeddings
    first, near, far = (np.array(one.values) for one in found)
    assert len(first) == 256 and np.isclose(np.linalg.norm(first), 1)
    assert first @ near > 0.3 > first @ far


def test_failures(client, gemini_server):
    gemini_server.fail(429, retry_after=7)
    gemini_server.fail(500, "out of order", call="countTokens")
    with pytest.raises(errors.ClientError) as limited:
        ask(client)
    assert (limited.value.code, limited.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert limited.value.response.headers["retry-after"] == "7"
    with pytest.raises(errors.ServerError, match="out of order"):
        client.models.count_tokens(model=MODEL, contents="x")
    assert client.models.count_tokens(model=MODEL, contents="one two").total_tokens == 7


def test_an_application_that_retries(gemini_server):
    retry = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.01)
    client = genai.Client(http_options=types.HttpOptions(retry_options=retry))
    gemini_server.fail(503)
    gemini_server.fail(429)
    gemini_server.reply("third")
    assert ask(client).text == "third"


def test_blocked_prompts(client, gemini_server):
    gemini_server.block()
    assert ask(client).prompt_feedback.block_reason == types.BlockedReason.SAFETY
    gemini_server.block("PROHIBITED_CONTENT")
    events = list(client.models.generate_content_stream(model=MODEL, contents="x"))
    assert [event.prompt_feedback.block_reason for event in events] == [types.BlockedReason.PROHIBITED_CONTENT]
    gemini_server.reply("So far", finish="SAFETY")
    candidate = ask(client).candidates[0]
    assert (candidate.finish_reason, candidate.content.parts[0].text) == (types.FinishReason.SAFETY, "So far")


def test_slow_and_broken_streams(client, gemini_server):
    gemini_server.reply("one two three", delay=0.05)
    began = time.monotonic()
    events = list(client.models.generate_content_stream(model=MODEL, contents="x"))
    assert "".join(event.text for event in events) == "one two three"
    assert time.monotonic() - began >= 3 * 0.05
    gemini_server.reply("one two three", break_after=2)
    seen = []
    with pytest.raises(Exception, match="peer closed connection"):
        for event in client.models.generate_content_stream(model=MODEL, contents="x"):
            seen.append(event.text)
    assert seen == ["one ", "two "]
    gemini_server.reply("one two three", break_after=0)
    with pytest.raises(Exception, match="peer closed connection"):
        ask(client)


def test_a_model_answers_where_the_script_does_not(tiny_folder):
    from alhena.testing import gemini_server as start

    with start(model=tiny_folder) as server:
        client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=server.url))
        server.reply("scripted")
        assert ask(client).text == "scripted"
        first, second = (ask(client, max_output_tokens=4) for _ in range(2))
        assert first.usage_metadata.candidates_token_count == 4 and first.text == second.text


def test_the_plugin_is_light():
    code = "import sys, alhena.pytest_plugin; assert not {'jax', 'fastapi', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_serves_a_script(tmp_path):
    script = [{"when": "Hi", "reply": [{"functionCall": {"name": "f", "args": {"x": 1}}}]}, {"otherwise": "no"}]
    (tmp_path / "script.json").write_text(json.dumps(script))
    command = [sys.executable, "-m", "alhena.testing", "--port", "0", "--script", str(tmp_path / "script.json")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip().partition("=")[2]
        request = {"contents": [{"parts": [{"text": "Hi"}]}]}
        answer = httpx.post(f"{url}/v1/models/m:generateContent", json=request).json()
        assert answer["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] == {"x": 1}
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"answer": "x"}, "must be an object with one of reply, fail"),
        ({"reply": "x", "whn": "y"}, "unknown field 'whn'"),
        ({"reply": [{"txt": "x"}]}, "unknown field 'txt'"),
    ],
)
def test_a_wrong_item_of_a_file_is_named(rule, error):
    with pytest.raises(ValueError, match=error):
        add_rule(Script(), rule, "script.json[3]")


def test_a_wrong_finish_reason_is_refused():
    with pytest.raises(ValueError, match="finish"):
        Reply((), finish="DONE")
