"""The wire format: variants that Google's API accepts are read, everything else is refused by the name of its field."""

from __future__ import annotations

import base64
import json

import pytest

from alhena.content import Audio, Content, Image, Text, Thought, Tool, ToolCall, ToolResult
from alhena.serve.engine import Answer
from alhena.serve.gemini.fields import MAX_STRUCTURE, WireError, parse_json
from alhena.serve.gemini.generation_config import Thinking
from alhena.serve.gemini.parts import write_part
from alhena.serve.gemini.wire import read_count_request, read_request, write_response
from alhena.serve.sampler import IMAGE_GUIDANCE, Sampling
from tests.conftest import random_image

DEFAULT = Sampling(max_tokens=256)
PNG = random_image(1).data
DATA = base64.b64encode(PNG).decode()


HI = Content("user", (Text("hi"),))


def read(body):
    return read_request(body, "tiny", DEFAULT)


def request(**fields):
    return {"contents": [{"parts": [{"text": "hi"}]}], **fields}


def image_request(mime="image/png", data=DATA, **more):
    return {"contents": [{"parts": [{"inlineData": {"mimeType": mime, "data": data}, **more}]}]}


@pytest.mark.parametrize(
    "body",
    [
        image_request(data=DATA.rstrip("=")),
        image_request(data=DATA.replace("+", "-").replace("/", "_")),
        image_request(data=base64.encodebytes(PNG).decode()),
        image_request(data=base64.encodebytes(PNG).decode().replace("\n", "\r\n")),
        image_request(data=f"data:image/png;base64,{DATA}"),
        image_request(data=f"data:image/png;base64,{DATA}", mime=None),
        image_request(mime="image/PNG"),
        image_request(mime="image/png; charset=binary"),
        image_request(text=None, thought=False),
        {"contents": {"role": "user", "parts": {"inline_data": {"mime_type": "image/png", "data": DATA}}}},
        {"contents": [{"parts": [{"inlineData": {"mime_type": "image/png", "data": DATA}}], "role": None}]},
    ],
)  # fmt: skip
def test_every_encoding_of_an_image_is_read(body):
    assert read(body).prompt.contents == (Content("user", (Image(PNG, "image/png"),)),)


@pytest.mark.parametrize(
    "contents", ["hi", {"parts": "hi"}, ["hi"], [{"parts": {"text": "hi"}}], [{"role": "user", "parts": ["hi"]}]]
)
def test_a_single_object_or_string_is_read_as_a_list(contents):
    assert read({"contents": contents}).prompt.contents == (Content("user", (Text("hi"),)),)


def test_consecutive_turns_of_one_role_are_merged():
    turns = [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "user", "parts": [{"text": "b"}]},
        *({"role": "model", "parts": [{"text": text}]} for text in ("Hel", "lo", "")),
        {"role": "model", "parts": [{"inlineData": {"mimeType": "image/png", "data": DATA}}]},
        {"role": "user", "parts": [{"text": "c"}]},
    ]
    model = Content("model", (Text("Hello"), Image(PNG)))
    merged = (Content("user", (Text("a"), Text("b"))), model, Content("user", (Text("c"),)))
    assert read({"contents": turns}).prompt.contents == merged
    assert read_count_request({"contents": turns[:-1]}, "tiny", DEFAULT).prompt.contents == merged[:-1]
    whole = {"generateContentRequest": {"model": "models/tiny", "contents": turns}}
    assert read_count_request(whole, "tiny", DEFAULT).prompt.contents == merged


@pytest.mark.parametrize("role", ["user", "system", None])
def test_a_system_instruction_is_the_first_turn(role):
    body = request(systemInstruction={"role": role, "parts": [{"text": "Be brief."}]})
    assert read(body).prompt.contents == (Content("system", (Text("Be brief."),)), HI)
    assert read(request(system_instruction="Be brief.")).prompt.contents == read(body).prompt.contents


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"topK": 4.0, "maxOutputTokens": "12"}, Sampling(top_k=4, max_tokens=12)),
        ({"top_k": 4, "topP": 0.5, "seed": -3}, Sampling(top_k=4, top_p=0.5, seed=-3)),
        ({"max_output_tokens": 2**31 - 1}, Sampling(max_tokens=1 << 20)),
        ({"candidateCount": 1, "responseMimeType": "text/plain", "responseLogprobs": False, "presencePenalty": 0}, DEFAULT),
        ({"thinkingConfig": {"thinkingBudget": 0, "includeThoughts": False}, "temperature": None}, DEFAULT),
        ({"responseModalities": ["text", "IMAGE"]}, Sampling(guidance=IMAGE_GUIDANCE)),
        ({"responseModalities": ["IMAGE"]}, Sampling(guidance=IMAGE_GUIDANCE, image_first=True)),
        ({"stopSequences": ["x", "y"]}, Sampling(stop=("x", "y"))),
    ],
)  # fmt: skip
def test_supported_settings_are_read(config, expected):
    assert read(request(generationConfig=config)).sampling == expected


def test_empty_fields_of_unsupported_features_are_accepted():
    setting = {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}
    assert read(request(tools=[], toolConfig={}, cachedContent="", safetySettings=[setting], model="models/tiny"))


FUNCTION = {"functionDeclarations": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (request(tools=[{"googleSearch": {}}]), "tools[0].googleSearch"),
        (request(tools=[FUNCTION, FUNCTION]), "twice"),
        (request(tools=[{"functionDeclarations": [{"name": "no name"}]}]), "tools[0].functionDeclarations[0].name"),
        (request(tools=[{"functionDeclarations": [{"name": "f", "response": 3}]}]), "response must be"),
        (request(tool_config={"functionCallingConfig": {"mode": "ANY"}}), "toolConfig.functionCallingConfig.mode"),
        (request(tool_config={"functionCallingConfig": {"allowedFunctionNames": ["f"]}}), "allowedFunctionNames"),
        (request(cachedContent="cachedContents/x"), "cachedContent"),
        (request(safetySettings=[{"category": "X", "threshold": "BLOCK_LOW_AND_ABOVE"}]), "safetySettings[0].threshold"),
        (request(fly=1), "'fly'"),
        (request(model="models/other"), "model"),
        (request(systemInstruction={"parts": image_request()["contents"][0]["parts"]}), "systemInstruction"),
        ({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "contents[0].role"),
        ({"contents": [{"role": "user", "parts": [{"text": "x"}], "name": "y"}]}, "contents[0] has an unknown field 'name'"),
        ({"contents": [{"role": "user", "parts": [{"text": "x"}]}, {"role": "model", "parts": [{"text": "y"}]}]}, "contents"),
        ({"contents": [{"parts": []}]}, "contents"),
        ({"contents": []}, "contents"),
        ({}, "contents"),
        ([], "the request must be an object"),
        (image_request(text="both"), "contents[0].parts[0]"),
        (image_request(mime="text/plain"), "contents[0].parts[0].inlineData.mimeType"),
        (image_request(mime="image/"), "contents[0].parts[0].inlineData.mimeType"),
        (image_request(data="data:image/png,abc"), "contents[0].parts[0].inlineData.data"),
        (image_request(data="data:audio/wav;base64,AAAA"), "contents[0].parts[0].inlineData"),
        (image_request(data="AAAAA"), "contents[0].parts[0].inlineData.data"),
        (image_request(data="AA*A"), "contents[0].parts[0].inlineData.data"),
        (image_request(data="é"), "contents[0].parts[0].inlineData.data"),
        (request(contents=[{"parts": [{"functionCall": {"name": "f"}}]}]), "contents[0]: a functionCall"),
        (request(contents=[{"parts": [{"text": "x", "thought": True}]}]), "contents[0]: a functionCall or a thought"),
        (request(contents=[{"role": "model", "parts": [{"functionResponse": {"name": "f"}}]}]), "contents[0]: a functionResponse"),
        (request(contents=[{"parts": [{"functionResponse": {"name": "f", "response": 3}}]}]), "functionResponse.response"),
        (request(contents=[{"parts": [{"fileData": {"fileUri": "x"}}]}]), "contents[0].parts[0].fileData"),
        (request(contents=[{"parts": [{"text": "\ud800"}]}]), "contents[0].parts[0].text"),
        (request(contents=[{"parts": [{"\ud800": 1}]}]), "contents[0].parts[0]"),
        (request(contents=[{"parts": [{"text": "x" * (1 << 20)}, {"text": "y"}]}]), "contents[0].parts[1]"),
    ],
)  # fmt: skip
def test_unsupported_fields_are_refused_by_name(body, named):
    with pytest.raises(WireError) as error:
        read(body)
    assert error.value.code == 400
    assert named in error.value.message
    json.dumps(error.value.body(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"temprature": 1}, "temprature"),
        ({"responseMimeType": "application/json"}, "responseMimeType"),
        ({"response_schema": {"type": "OBJECT"}}, "responseSchema"),
        ({"responseJsonSchema": {"type": "object"}}, "responseJsonSchema"),
        ({"responseLogprobs": True}, "responseLogprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"presencePenalty": 0.5}, "presencePenalty"),
        ({"responseModalities": ["AUDIO"]}, "AUDIO"),
        ({"speechConfig": {"voiceConfig": {}}}, "speechConfig"),
        ({"thinkingConfig": {"thinkingBudget": -2}}, "thinkingBudget"),
        ({"thinkingConfig": {"thinkingLevel": "DEEP"}}, "thinkingLevel"),
        ({"thinkingConfig": {"thinkingLevel": "HIGH", "thinkingBudget": -1}}, "exclude each other"),
        ({"thinkingConfig": {"depth": 1}}, "depth"),
        ({"mediaResolution": "MEDIA_RESOLUTION_LOW"}, "mediaResolution"),
        ({"imageConfig": {"imageSize": "4K"}}, "imageSize"),
        ({"candidateCount": 2}, "candidateCount"),
        ({"topK": 4.5}, "topK"),
        ({"topK": True}, "topK"),
        ({"topK": 4, "top_k": 5}, "topK"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"maxOutputTokens": 0}, "max_tokens"),
        ({"stopSequences": [""]}, "stopSequences"),
        ({"stopSequences": [3]}, "stopSequences"),
        ([1], "generationConfig"),
    ],
)  # fmt: skip
def test_unsupported_settings_are_refused_by_name(config, named):
    with pytest.raises(WireError, match=named) as error:
        read(request(generationConfig=config))
    assert error.value.code == 400


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"", b"\xff", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": -1e999}', b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a":' * 100_000, b'{"text": "\xed\xa0\x80"}', "{}".encode("utf-16"),
        b"{" + b'"a":1,' * MAX_STRUCTURE + b'"b":1}',
    ],
    ids=range(14),
)  # fmt: skip
def test_invalid_json_is_refused(data):
    with pytest.raises(WireError) as error:
        parse_json(data)
    assert error.value.code == 400
    assert len(error.value.message) < 2000


def test_functions_calls_and_results_are_read():
    schema = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
    call = {"functionCall": {"name": "weather", "args": {"city": "Bern"}, "id": "7"}}
    result = {"functionResponse": {"name": "weather", "response": {"temp": 21}, "id": "7"}}
    body = {
        "tools": [{"functionDeclarations": [{"name": "weather", "description": "d", "parameters": schema}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "hi"}]},
            {"role": "model", "parts": [{"text": "hm", "thought": True}, call]},
            {"role": "user", "parts": [result, {"text": "and?"}]},
        ],
    }
    prompt = read(body).prompt
    assert prompt.tools == (Tool("weather", "d", schema),)
    assert prompt.contents == (
        HI,
        Content("model", (Thought("hm"), ToolCall("weather", {"city": "Bern"}, "7"))),
        Content("tool", (ToolResult("weather", {"temp": 21}, id="7"),)),
        Content("user", (Text("and?"),)),
    )
    assert read({**body, "toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}).prompt.tools == ()
    assert [write_part(part) for part in prompt.contents[1].parts] == body["contents"][1]["parts"]


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ({}, Thinking.OFF),
        ({"thinkingBudget": 0}, Thinking.OFF),
        ({"thinkingLevel": "MINIMAL"}, Thinking.OFF),
        ({"thinkingBudget": 512, "includeThoughts": True}, Thinking.LIMITED),
        ({"thinkingBudget": -1}, Thinking.HIDDEN),
        ({"thinkingLevel": "high"}, Thinking.HIDDEN),
        ({"includeThoughts": True, "thinkingBudget": -1}, Thinking.INCLUDED),
        ({"includeThoughts": True}, Thinking.IF_ANY),
        ({"includeThoughts": True, "thinkingBudget": 0}, Thinking.OFF),
    ],
)
def test_thinking_is_read(thinking, expected):
    parsed = read(request(generationConfig={"thinkingConfig": thinking}))
    assert parsed.thinking is expected
    assert parsed.prompt.thinking is (expected not in (Thinking.OFF, Thinking.LIMITED))


def test_every_response_has_a_part():
    answer = Answer(Content("model", ()), "stop", 3, 1)
    last = write_response((), "tiny", answer)["candidates"][0]
    assert last["content"]["parts"] == [{"text": ""}]
    assert last["finishReason"] == "STOP"


def part(mime, data):
    return read(image_request(mime, base64.b64encode(data).decode())).prompt.contents[0].parts[0]


WAV = b"RIFF\0\0\0\0WAVEfmt "


def test_bytes_of_another_format_of_the_declared_kind_are_read_as_what_they_are():
    assert part("image/jpeg", PNG) == Image(PNG, "image/png")
    assert part("audio/L16;rate=16000", WAV) == Audio(WAV, "audio/wav")


def test_bytes_of_no_known_format_keep_the_declared_type():
    assert part("audio/L16;rate=16000", bytes(100)) == Audio(bytes(100), "audio/l16")


@pytest.mark.parametrize(("mime", "data", "actual"), [("audio/wav", PNG, "image/png"), ("video/mp4", WAV, "audio/wav")])
def test_bytes_of_another_kind_than_declared_are_refused(mime, data, actual):
    message = rf"contents\[0\]\.parts\[0\]\.inlineData\.mimeType is '{mime}', but the data are {actual}"
    with pytest.raises(WireError, match=message) as error:
        part(mime, data)
    assert error.value.code == 400
