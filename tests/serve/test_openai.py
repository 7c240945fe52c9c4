"""The OpenAI-compatible API: each request is the generateContent that it stands for, and each response that one's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from google import genai

from alhena.content import Text, Thought, ToolCall
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.openai.chat_request import HARMLESS, read_chat
from alhena.testing import Script, gemini_server
from tests.conftest import random_audio, random_image
from tests.serve.conftest import running
from tests.serve.test_server import Endless
from tests.serve.waiting import wait_for

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]
DECLARED = [{"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": SCHEMA}]}]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with gemini_server() as script:
        yield script


def chat(address: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": HELLO, **fields}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def translated(**fields: Any) -> dict[str, Any]:
    return read_chat({"model": "m", "messages": HELLO, **fields}).translation.body


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({"temperature": 0.5, "top_p": 0.9, "seed": 3, "n": 2}, {"temperature": 0.5, "topP": 0.9, "seed": 3, "candidateCount": 2}),
        ({"max_completion_tokens": 7, "stop": "x"}, {"maxOutputTokens": 7, "stopSequences": ["x"]}),
        ({"max_tokens": 7, "stop": ["x", "y"]}, {"maxOutputTokens": 7, "stopSequences": ["x", "y"]}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presencePenalty": 1, "frequencyPenalty": -1}),
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"logprobs": True}, {"responseLogprobs": True, "logprobs": 0}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"reasoning_effort": "high"}, {"thinkingConfig": {"thinkingLevel": "HIGH"}}),
        (
            {"extra_body": {"google": {"thinking_config": {"thinking_budget": 9}}}},
            {"thinkingConfig": {"thinking_budget": 9}},
        ),
        ({"modalities": ["text", "image"]}, {"responseModalities": ["TEXT", "IMAGE"]}),
        ({"modalities": ["text"], **dict.fromkeys(HARMLESS, "x"), "store": False, "top_logprobs": None}, {}),
    ],
)  # fmt: skip
def test_settings_become_a_generation_config(fields, config):
    assert translated(**fields)["generationConfig"] == config


@pytest.mark.parametrize(
    ("choice", "strict", "config"),
    [
        ("auto", False, {"mode": "AUTO"}),
        ("auto", True, {"mode": "VALIDATED"}),
        ("none", False, {"mode": "NONE"}),
        ("required", False, {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, False, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}},
            False,
            {"mode": "VALIDATED", "allowedFunctionNames": ["f"]},
        ),
    ],
)  # fmt: skip
def test_tools_become_declarations_and_a_mode(choice, strict, config):
    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": strict}}]
    body = translated(tools=tools, tool_choice=choice)
    assert (body["tools"], body["toolConfig"]["functionCallingConfig"]) == (DECLARED, config)


def test_messages_become_contents():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Bern"}'}}
    body = translated(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "7 degrees"},
            {"role": "developer", "content": "In German."},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "In German."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"functionCall": {"name": "f", "args": {"city": "Bern"}, "id": "1"}},
            ],
        },
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "id": "1", "response": {"result": "7 degrees"}}}]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nonsense": 1}, "the request has an unknown field 'nonsense'"),
        ({"logit_bias": {"1": 5}}, "logit_bias is not offered"),
        ({"store": True}, "store is not offered"),
        ({"functions": []}, "functions is not offered by this server; use tools"),
        ({"parallel_tool_calls": False, "tools": TOOLS}, "parallel_tool_calls is not offered"),
        ({"tool_choice": "required"}, "tool_choice requires a call, but there are no tools"),
        ({"tools": [{"type": "custom", "custom": {}}]}, r"tools\[0\].type is not offered by this server as 'custom'"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens and max_completion_tokens exclude each other"),
        ({"top_logprobs": 1}, "top_logprobs is given, but logprobs is not true"),
        ({"stream_options": {"include_usage": True}}, "stream_options is given, but stream is not true"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'"),
        ({"messages": [{"role": "function", "content": ""}]}, r"messages\[0\].role is not offered"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, r"messages\[0\].name is not offered"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]}]},
            r"messages\[0\].content\[0\].image_url.url is 'https://a/b.png'; .* never fetched",
        ),
        (
            {"messages": [{"role": "tool", "tool_call_id": "9", "content": "a"}]},
            r"messages\[0\].tool_call_id is '9'; no earlier message has a tool call",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_honored_is_refused_by_name(fields, message):
    with pytest.raises(WireError, match=message) as error:
        translated(**fields)
    assert error.value.code == 400


@pytest.mark.parametrize(
    ("fields", "code", "param", "message"),
    [
        ({"max_tokens": 1.5}, 400, "max_tokens", "max_tokens must be an integer"),
        ({"messages": []}, 400, "messages", "messages must hold at least one turn"),
        ({"tools": [{"type": "function", "function": {"name": "1"}}]}, 400, "tools[0].function.name", "form the name"),
        ({"model": "other"}, 404, None, "models/other is not found"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url("image/png", b"x")}}]}]},
            400, "messages[0].content[0]", "the image cannot be decoded",
        ),
    ],
)  # fmt: skip
def test_errors_have_the_shape_and_the_fields_of_openai(tiny_address, fields, code, param, message):
    answer = chat(tiny_address, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert message in error["message"]


# ── Answers of a model ────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_that_of_generate_content(tiny_address):
    image, audio = random_image(1), random_audio(2)
    content = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": data_url("image/png", image.data)}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio.data).decode(), "format": "wav"}},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    settings = {"temperature": 1, "seed": 3}
    answer = chat(tiny_address, messages=messages, max_completion_tokens=6, **settings).json()
    parts = [
        {"text": "What?"},
        {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(image.data).decode()}},
        {"inlineData": {"mimeType": "audio/wav", "data": base64.b64encode(audio.data).decode()}},
    ]
    same = httpx.post(
        f"{tiny_address}/v1/models/tiny:generateContent", timeout=120,
        json={"contents": [{"parts": parts}], "systemInstruction": "Be brief.", "generationConfig": {**settings, "maxOutputTokens": 6}},
    ).json()  # fmt: skip
    text = "".join(part.get("text", "") for part in same["candidates"][0]["content"]["parts"])
    assert answer["choices"][0]["message"]["content"] == text
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = same["usageMetadata"]
    assert answer["usage"]["prompt_tokens"] == usage["promptTokenCount"]
    assert answer["usage"]["completion_tokens"] == usage["candidatesTokenCount"] == 6
    assert answer["usage"]["prompt_tokens_details"]["audio_tokens"] > 0


def test_a_stream_adds_up_to_the_answer(tiny_address):
    settings = {"temperature": 1, "seed": 5, "max_tokens": 8}
    whole = chat(tiny_address, **settings).json()
    streamed = events(chat(tiny_address, **settings, stream=True, stream_options={"include_usage": True}))
    deltas = [event["choices"][0]["delta"] for event in streamed if event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[0]["role"] == "assistant"
    assert streamed[-1]["choices"] == []
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [streamed[-1]["usage"][name] for name in names] == [whole["usage"][name] for name in names]
    reasons = [event["choices"][0]["finish_reason"] for event in streamed if event["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert {event["object"] for event in streamed} == {"chat.completion.chunk"}


def test_a_client_that_disconnects_from_a_stream_frees_the_engine(tiny_engine):
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        body = {"model": "tiny", "messages": HELLO, "stream": True, "max_tokens": 1000}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
            next(answer.iter_lines())
        wait_for(lambda: engine.cancelled == 1)


def test_embeddings_are_those_of_embed_content(tiny_address):
    def ask(**fields: Any) -> httpx.Response:
        body = {"model": "tiny", "input": ["red", "green"], **fields}
        return httpx.post(f"{tiny_address}/v1/embeddings", json=body, timeout=120)

    numbers = ask(dimensions=8).json()
    vectors = np.array([row["embedding"] for row in numbers["data"]], np.float32)
    packed = [base64.b64decode(row["embedding"]) for row in ask(dimensions=8, encoding_format="base64").json()["data"]]
    assert np.array_equal(np.array([np.frombuffer(row, "<f4") for row in packed]), vectors)
    client = genai.Client(api_key="any", http_options={"base_url": tiny_address})
    same = client.models.embed_content(model="tiny", contents=["red", "green"], config={"output_dimensionality": 8})
    assert np.allclose(vectors, [e.values for e in same.embeddings])
    assert numbers["usage"]["prompt_tokens"] > 0
    assert ask(input=[[1, 2]]).json()["error"]["message"].startswith("input as tokens is not offered")
    assert ask(dimensions=9999).json()["error"]["param"] == "dimensions"


def test_models_are_readable_for_clients_of_both_apis(tiny_address):
    client = genai.Client(api_key="any", http_options={"base_url": tiny_address, "api_version": "v1"})
    assert [model.name for model in client.models.list()] == ["models/tiny"]
    assert client.models.get(model="tiny").name == "models/tiny"
    for prefix in ("/v1", "/v1beta/openai"):
        listed = httpx.get(f"{tiny_address}{prefix}/models").json()
        assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["tiny"])
        one = httpx.get(f"{tiny_address}{prefix}/models/tiny").json()
        assert (one["id"], one["object"]) == ("tiny", "model")


# ── Scripted answers ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_tool_is_called_and_its_result_is_read(script):
    script.reset()
    script.reply(Thought("hm"), Text("Let me look."), ToolCall("f", {"city": "Bern"}), ToolCall("f", {"city": "Basel"}))
    script.reply("7 and 8 degrees.")
    asked = chat(script.url, model="scripted", tools=TOOLS).json()["choices"][0]
    message = asked["message"]
    assert (asked["finish_reason"], message["content"]) == ("tool_calls", "Let me look.")
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
        {"city": "Bern"},
        {"city": "Basel"},
    ]
    # The thought comes back with its call, though the client has not seen it.
    assert message["tool_calls"][0]["extra_content"]["google"]["thought_signature"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": '{"degrees": 7}'} for call in message["tool_calls"]
    ]
    told = chat(script.url, model="scripted", tools=TOOLS, messages=[*HELLO, message, *results])
    assert told.json()["choices"][0]["message"]["content"] == "7 and 8 degrees."


def test_a_streamed_call_has_an_index_and_an_id(script):
    script.reset()
    script.reply(ToolCall("f", {"city": "Bern"}), ToolCall("f", {"city": "Basel"}))
    streamed = events(chat(script.url, model="scripted", tools=TOOLS, stream=True))
    calls = [call for event in streamed for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [(call["index"], call["function"]["arguments"]) for call in calls] == [
        (0, '{"city": "Bern"}'),
        (1, '{"city": "Basel"}'),
    ]
    assert calls[0]["id"] != calls[1]["id"]
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_thoughts_that_are_asked_for_are_beside_the_answer(script):
    script.reset()
    script.reply(Thought("hm"), Text("7"))
    config = {"google": {"thinking_config": {"include_thoughts": True, "thinking_budget": -1}}}
    message = chat(script.url, model="scripted", extra_body=config).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("7", "hm")


def test_an_engine_that_fails_in_a_stream_is_an_error_of_openai(tiny_engine):
    class Failing(Endless):
        def stream(self, *_):
            yield Text("a ")
            raise RuntimeError("out of something")

    with running(Failing(tiny_engine), "tiny") as address:
        last = chat(address, stream=True).text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        whole = chat(address)
        assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
