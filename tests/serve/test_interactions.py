"""The Interactions API with the real SDK: kept conversations, streams that resume, answers in the background, functions, refusals."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import interactions as sdk
from google.genai import types

from alhena.content import Text, Thought, ToolCall
from alhena.serve.gemini.interactions.events import fold
from alhena.serve.gemini.interactions.request import read_interaction, translate
from alhena.serve.gemini.interactions.store import Interactions
from alhena.serve.gemini.server.settings import Settings
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.store import Store
from alhena.testing import Script, gemini_server
from tests.conftest import random_image
from tests.serve.conftest import running
from tests.serve.test_server import Endless
from tests.serve.waiting import leave, wait_for

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}]
CONFIG = {"max_output_tokens": 6, "temperature": 1, "seed": 3}
LONG = {"max_output_tokens": 1000, "temperature": 1, "stop_sequences": ["no such words"]}
# The types of steps, contents and events that the SDK knows.
UNKNOWN = "Unknown"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The SDK calls temperature and top_p deprecated in this API, and offers no other way to set them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with gemini_server() as script:
        yield script


def client_of(address: str) -> genai.Client:
    return genai.Client(api_key="any", http_options={"base_url": address, "timeout": 120_000})


@pytest.fixture
def tiny_client(tiny_address: str) -> genai.Client:
    return client_of(tiny_address)


@pytest.fixture
def scripted(script: Script) -> genai.Client:
    script.reset()
    return client_of(script.url)


def dumped(events: list[Any]) -> list[dict[str, Any]]:
    assert not any(type(event).__name__.startswith(UNKNOWN) for event in events)
    return [event.model_dump(mode="json", exclude_none=True) for event in events]


# ── Conversations ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kept_conversation_is_answered_like_one_that_is_sent_complete(tiny_client):
    image = {"type": "image", "mime_type": "image/png", "data": base64.b64encode(random_image(1).data).decode()}
    question = [{"type": "text", "text": "What?"}, image]
    first = tiny_client.interactions.create(model="tiny", input=question, generation_config=CONFIG)
    second = tiny_client.interactions.create(
        model="tiny", input="Why?", previous_interaction_id=first.id, generation_config=CONFIG
    )
    steps = [
        {"type": "user_input", "content": question},
        *(step.model_dump(exclude_none=True) for step in first.steps),
        {"type": "user_input", "content": [{"type": "text", "text": "Why?"}]},
    ]
    stateless = tiny_client.interactions.create(model="tiny", input=steps, store=False, generation_config=CONFIG)
    assert second.output_text == stateless.output_text
    contents = [
        types.UserContent(["What?", types.Part.from_bytes(data=random_image(1).data, mime_type="image/png")]),
        types.ModelContent(first.output_text),
        types.UserContent("Why?"),
    ]
    generated = tiny_client.models.generate_content(model="tiny", contents=contents, config=CONFIG)
    assert second.output_text == generated.text
    counts = (second.usage.total_input_tokens, stateless.usage.total_input_tokens)
    assert counts == (generated.usage_metadata.prompt_token_count,) * 2
    assert {count.modality for count in second.usage.input_tokens_by_modality} == {"text", "image"}
    kept = tiny_client.interactions.get(second.id, include_input=True)
    assert kept.previous_interaction_id == first.id
    assert [step.type for step in kept.steps] == ["user_input", "model_output"]
    assert kept.input[0].content[0].text == "Why?"
    with pytest.raises(Exception, match="not stored"):
        tiny_client.interactions.get(stateless.id)


def test_a_stream_adds_up_to_the_answer_and_resumes_after_each_event(tiny_client):
    whole = tiny_client.interactions.create(model="tiny", input="Hello", generation_config=CONFIG)
    events = dumped(
        list(tiny_client.interactions.create(model="tiny", input="Hello", generation_config=CONFIG, stream=True))
    )
    assert fold(events) == [step.model_dump(mode="json", exclude_none=True) for step in whole.steps]
    assert (events[0]["event_type"], events[-1]["event_type"]) == ("interaction.created", "interaction.completed")
    assert events[-1]["interaction"]["status"] == whole.status == "incomplete"
    # How much of the prompt was in the cache already may differ.
    usage, names = events[-1]["interaction"]["usage"], ("total_input_tokens", "total_output_tokens", "total_tokens")
    assert [usage[name] for name in names] == [getattr(whole.usage, name) for name in names]
    identity = events[0]["interaction"]["id"]
    for i, event in enumerate(events):
        rest = tiny_client.interactions.get(identity, stream=True, last_event_id=event["event_id"])
        assert dumped(list(rest)) == events[i + 1 :]
    with pytest.raises(Exception, match="has no such event"):
        list(tiny_client.interactions.get(identity, stream=True, last_event_id="999"))


def test_interactions_outlive_the_server(tiny_engine, tmp_path):
    settings = Settings(state=tmp_path)
    with running(Endless(tiny_engine), "tiny", settings) as address:
        client = client_of(address)
        first = client.interactions.create(model="tiny", input="Hello", generation_config={"max_output_tokens": 4})
        left = client.interactions.create(model="tiny", input="Hello", generation_config=LONG, background=True)
        # What a process that is killed leaves behind.
        wait_for(lambda: client.interactions.get(left.id).steps[1:])
    store = Store(tmp_path)
    killed = store.get("interaction", left.id)
    killed.value["resource"]["status"] = "in_progress"
    store.put("interaction", killed)
    Interactions(store)
    store.close()
    with running(Endless(tiny_engine), "tiny", settings) as address:
        client = client_of(address)
        assert client.interactions.get(first.id).output_text == "short"
        failed = client.interactions.get(left.id)
        assert (failed.status, failed.errors[0].message) == ("failed", "the server was stopped")
        with pytest.raises(Exception, match="has the status failed"):
            client.interactions.create(model="tiny", input="Again", previous_interaction_id=left.id)


# ── In the background ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_interaction_in_the_background_is_followed_cancelled_and_deleted(tiny_engine):
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        client = client_of(address)
        begun = client.interactions.create(model="tiny", input="Hello", generation_config=LONG, background=True)
        assert begun.status == "in_progress"
        with client.interactions.get(begun.id, stream=True) as stream:
            seen = [next(stream) for _ in range(5)]
        # Who follows may leave; the answer is still made.
        with client.interactions.get(begun.id, stream=True, last_event_id=seen[-1].event_id) as stream:
            assert next(stream).event_id == "6"
        assert engine.cancelled == 0
        assert client.interactions.get(begun.id).status == "in_progress"
        assert client.interactions.cancel(begun.id).status == "cancelled"
        wait_for(lambda: engine.cancelled == 1)
        kept = client.interactions.get(begun.id)
        assert kept.status == "cancelled"
        assert kept.output_text.startswith("on on")
        with pytest.raises(Exception, match="only one that runs in the background is cancelled"):
            client.interactions.cancel(begun.id)
        running_too = client.interactions.create(model="tiny", input="Hello", generation_config=LONG, background=True)
        for identity in (begun.id, running_too.id):
            client.interactions.delete(identity)
            with pytest.raises(Exception, match="there is no interaction"):
                client.interactions.get(identity)
        wait_for(lambda: engine.cancelled == 2)


def test_a_client_that_leaves_the_foreground_frees_the_engine(tiny_engine):
    engine = Endless(tiny_engine)
    with running(engine, "tiny") as address:
        body = {"model": "tiny", "input": "Hello", "generation_config": LONG}
        with httpx.stream("POST", f"{address}/v1/interactions", json={**body, "stream": True}, timeout=60) as answer:
            next(answer.iter_lines())
        wait_for(lambda: engine.cancelled == 1)
        leave(f"{address}/v1/interactions", body, lambda: engine.begun == 2)
        wait_for(lambda: engine.cancelled == 2)


def test_a_background_answer_ends_without_a_client(scripted, script):
    script.reply("one two three", delay=0.05)
    stream = scripted.interactions.create(model="scripted", input="count", background=True, stream=True)
    identity = next(stream).interaction.id
    stream.close()
    wait_for(lambda: scripted.interactions.get(identity).status != "in_progress")
    kept = scripted.interactions.get(identity)
    assert (kept.status, kept.output_text) == ("completed", "one two three")


# ── Functions and thoughts ────────────────────────────────────────────────────────────────────────────────────


def test_a_function_is_called_and_its_result_is_read(scripted, script):
    script.reply(Thought("hm"), Text("Let me look."), ToolCall("f", {"city": "Bern"}))
    script.reply("7 degrees.")
    asked = scripted.interactions.create(model="scripted", input="How warm?", tools=TOOLS)
    assert asked.status == "requires_action"
    assert [step.type for step in asked.steps] == ["model_output", "thought", "function_call"]
    call = asked.steps[-1]
    assert (call.name, call.arguments) == ("f", {"city": "Bern"})
    result = {"type": "function_result", "call_id": call.id, "result": {"degrees": 7}}
    told = scripted.interactions.create(model="scripted", input=[result], previous_interaction_id=asked.id, tools=TOOLS)
    assert (told.status, told.output_text) == ("completed", "7 degrees.")
    with pytest.raises(Exception, match="no earlier step has a function_call of that id"):
        scripted.interactions.create(model="scripted", input=[result], tools=TOOLS)


def test_streamed_steps_begin_grow_and_end_in_order(scripted, script):
    script.reply(Thought("well now"), Text("I look."), ToolCall("f", {"city": "Bern"}), Text("Done."))
    config = {"thinking_summaries": "auto", "thinking_level": "low"}
    stream = scripted.interactions.create(
        model="scripted", input="a", tools=TOOLS, generation_config=config, stream=True
    )
    events = dumped(list(stream))
    kinds = [(event["event_type"], event.get("index")) for event in events[1:-1]]
    assert [index for kind, index in kinds if kind == "step.start"] == list(range(len(fold(events))))
    assert [index for kind, index in kinds if kind == "step.stop"] == list(range(len(fold(events))))
    assert [index for _, index in kinds] == sorted(index for _, index in kinds)
    steps = fold(events)
    assert [step["type"] for step in steps] == ["thought", "model_output", "thought", "function_call", "model_output"]
    assert steps[0]["summary"] == [{"type": "text", "text": "well now"}]
    assert steps[2]["signature"]
    assert steps[3]["arguments"] == {"city": "Bern"}
    assert events[-1]["interaction"]["status"] == "requires_action"


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────


def body_of(**fields: Any) -> dict[str, Any]:
    request, read = read_interaction({"model": "m", "input": "a", **fields})
    return translate(read, [], request.input).body


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        ({"generation_config": {"top_p": 0.5, "stop_sequences": ["x"]}}, {"topP": 0.5, "stopSequences": ["x"]}),
        (
            {"generation_config": {"thinking_level": "low", "thinking_summaries": "auto"}},
            {"thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True}},
        ),
        (
            {"response_format": {"type": "text", "mime_type": "application/json", "schema": SCHEMA}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        (
            {"response_format": SCHEMA, "response_mime_type": "application/json"},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        (
            {"response_format": [{"type": "image", "aspect_ratio": "16:9"}]},
            {"responseModalities": ["IMAGE"], "imageConfig": {"aspectRatio": "16:9"}},
        ),
        ({"response_modalities": ["text", "image"]}, {"responseModalities": ["TEXT", "IMAGE"]}),
    ],
)  # fmt: skip
def test_settings_become_a_generation_config(fields, config):
    assert body_of(**fields)["generationConfig"] == config


def test_steps_and_options_become_a_body():
    steps = [
        {"type": "user_input", "content": [{"type": "document", "uri": "files/a", "mime_type": "application/pdf"}]},
        {"type": "thought", "signature": "c2ln", "summary": [{"type": "text", "text": "hm"}]},
        {"type": "function_call", "id": "1", "name": "f", "arguments": {"city": "Bern"}},
        {"type": "function_result", "call_id": "1", "result": [{"type": "text", "text": "7"}], "is_error": True},
        {
            "type": "user_input",
            "content": [
                {
                    "type": "video", "data": "AAAA", "mime_type": "video/mp4", "resolution": "low",
                    "processing": {"type": "static", "fps": 2, "start_offset": "1s"},
                }
            ],
        },
    ]  # fmt: skip
    body = body_of(
        input=steps, tools=TOOLS, safety_settings=[{"type": "harassment", "threshold": "block_none"}],
        generation_config={"tool_choice": {"allowed_tools": {"mode": "any", "tools": ["f"]}}},
    )  # fmt: skip
    video = {
        "inlineData": {"mimeType": "video/mp4", "data": "AAAA"},
        "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"},
        "videoMetadata": {"fps": 2, "startOffset": "1s"},
    }
    call = {"functionCall": {"name": "f", "args": {"city": "Bern"}, "id": "1"}, "thoughtSignature": "c2ln"}
    assert [(turn["role"], turn["parts"]) for turn in body["contents"]] == [
        ("user", [{"fileData": {"mimeType": "application/pdf", "fileUri": "files/a"}}]),
        ("model", [{"text": "hm", "thought": True}]),
        ("model", [call]),
        ("user", [{"functionResponse": {"name": "f", "id": "1", "response": {"error": "7"}}}]),
        ("user", [video]),
    ]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}
    assert body["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nonsense": 1}, "the request has an unknown field 'nonsense'"),
        ({"agent": "deep-research-pro-preview-12-2025"}, "agent is not offered"),
        ({"tools": [{"type": "google_search"}]}, r"tools\[0\].type is not offered by this server as 'google_search'"),
        ({"environment": "e"}, "environment is not offered"),
        ({"webhook_config": {"uris": ["https://a"]}}, "webhook_config is not offered"),
        ({"service_tier": "flex"}, "service_tier is not offered by this server but as standard"),
        ({"generation_config": {"speech_config": {"speakers": []}}}, "generation_config.speech_config is not offered"),
        ({"response_format": {"type": "audio"}}, "response_format.type is not offered by this server as 'audio'"),
        ({"background": True, "store": False}, "background requires store"),
        ({"input": [{"type": "image"}]}, r"input\[0\] must have either data or uri"),
        ({"input": [{"type": "text", "text": "a", "b": 1}]}, r"input\[0\] has an unknown field 'b'"),
        ({"input": [{"type": "google_search_call"}]}, r"input\[0\].type is 'google_search_call'"),
        ({"input": [{"type": "user_input", "content": [{"type": "text", "text": 1}]}]}, r"input\[0\].content\[0\].text must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_honored_is_refused_by_name(fields, message):
    with pytest.raises(WireError, match=message) as error:
        body_of(**fields)
    assert error.value.code == 400


def test_errors_have_the_classes_of_the_sdk(tiny_client):
    wrong = [{"type": "image", "data": "AAAA", "mime_type": "image/png"}]
    for call, code in (
        (lambda: tiny_client.interactions.create(model="tiny", input=wrong), 400),
        (lambda: tiny_client.interactions.create(model="other", input="a"), 404),
        (lambda: tiny_client.interactions.create(model="tiny", input="a", previous_interaction_id="v1_none"), 404),
        (lambda: tiny_client.interactions.get("v1_none"), 404),
        (lambda: tiny_client.interactions.delete("v1_none"), 404),
    ):
        with pytest.raises(Exception, match="Error code") as error:
            call()
        assert error.value.status_code == code
        assert error.value.body["error"]["code"] in ("invalid_argument", "not_found")


def test_what_the_server_sends_has_the_fields_of_the_sdk(tiny_client):
    created = tiny_client.interactions.create(
        model="tiny", input="a", generation_config=CONFIG, system_instruction="Be brief.", labels={"team": "a"}
    )
    assert not created.model_extra.keys() - {"object"}
    assert (created.system_instruction, created.labels) == ("Be brief.", {"team": "a"})
    for event in tiny_client.interactions.create(model="tiny", input="a", generation_config=CONFIG, stream=True):
        assert not event.model_extra
        assert isinstance(
            event,
            sdk.InteractionCreatedEvent | sdk.InteractionCompletedEvent | sdk.StepStart | sdk.StepDelta | sdk.StepStop,
        )
