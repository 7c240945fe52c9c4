"""The wire format: variants that Google's API accepts are read, everything else is refused by the name of its field."""

from __future__ import annotations

import base64
import json

import pytest

from alhena.content import Audio, Content, Image, Text, Thought, Tool, ToolCall, ToolResult
from alhena.serve.decoding.sampling.sampler import IMAGE_GUIDANCE, OutputFormat, Sampling
from alhena.serve.engine import Answer
from alhena.serve.gemini.generate import write_answers
from alhena.serve.gemini.wire.fields import MAX_STRUCTURE, WireError, parse_json
from alhena.serve.gemini.wire.parts import write_part
from alhena.serve.gemini.wire.request import Served, read_count_request, read_request
from alhena.serve.gemini.wire.responses import Context
from alhena.serve.gemini.wire.settings.thinking import Thinking
from alhena.serve.structured.json_schema import json_schema
from tests.conftest import random_image

DEFAULT = Sampling(max_tokens=256)
SERVED = Served(DEFAULT)
PNG = random_image(1).data
DATA = base64.b64encode(PNG).decode()


HI = Content("user", (Text("hi"),))


def read(body):
    return read_request(body, "tiny", SERVED)


def request(**fields):
    return {"contents": [{"parts": [{"text": "hi"}]}], **fields}


def image_request(mime="image/png", data=DATA, **more):
    return {"contents": [{"parts": [{"inlineData": {"mimeType": mime, "data": data}, **more}]}]}


def video(**metadata):
    return image_request("video/mp4", "AAAA", videoMetadata=metadata)


JSON = {"responseMimeType": "application/json"}
SCHEMA = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER", "nullable": True, "maximum": 3}}}
JSON_SCHEMA = json_schema(SCHEMA)


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
    assert read_count_request({"contents": turns[:-1]}, "tiny", SERVED).prompt.contents == merged[:-1]
    whole = {"generateContentRequest": {"model": "models/tiny", "contents": turns}}
    assert read_count_request(whole, "tiny", SERVED).prompt.contents == merged


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
        ({"presencePenalty": 0.5, "frequency_penalty": -1}, Sampling(presence_penalty=0.5, frequency_penalty=-1)),
        ({"responseLogprobs": True}, Sampling(logprobs=0)),
        ({"responseLogprobs": True, "logprobs": 3}, Sampling(logprobs=3)),
        (JSON, Sampling(output=OutputFormat("{}"))),
        (JSON | {"responseSchema": SCHEMA}, Sampling(output=OutputFormat(json.dumps(JSON_SCHEMA)))),
        (JSON | {"response_json_schema": JSON_SCHEMA}, Sampling(output=OutputFormat(json.dumps(JSON_SCHEMA)))),
        ({"response_mime_type": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["a", "b"]}}, Sampling(output=OutputFormat(choices=("a", "b")))),
        ({"imageConfig": {"aspectRatio": "2:1", "outputMimeType": "image/png"}}, Sampling(aspect=2)),
    ],
)  # fmt: skip
def test_supported_settings_are_read(config, expected):
    assert read(request(generationConfig=config)).sampling == expected


def test_empty_fields_of_unsupported_features_are_accepted():
    setting = {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}
    assert read(request(tools=[], toolConfig={}, cachedContent="", safetySettings=[setting], model="models/tiny"))


FUNCTION = {"functionDeclarations": [{"name": "f"}]}
HARM = "HARM_CATEGORY_HARASSMENT"


def calling(**config):
    return {"functionCallingConfig": config}


def with_part(**part):
    return request(contents=[{"parts": [part]}])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (request(tools=[{"googleSearch": {}}]), "tools[0].googleSearch"),
        (request(tools=[FUNCTION, FUNCTION]), "twice"),
        (request(tools=[{"functionDeclarations": [{"name": "no name"}]}]), "tools[0].functionDeclarations[0].name"),
        (request(tools=[{"functionDeclarations": [{"name": "f", "response": 3}]}]), "response must be"),
        (request(tool_config={"functionCallingConfig": {"mode": "ANY"}}), "mode is ANY, but tools declare no function"),
        (request(tool_config={"functionCallingConfig": {"mode": "SOME"}}), "toolConfig.functionCallingConfig.mode"),
        (request(tools=[FUNCTION], toolConfig=calling(mode="ANY", allowedFunctionNames=["g"])), "'g', which tools do not declare"),
        (request(tools=[FUNCTION], toolConfig=calling(mode="ANY"), generationConfig=JSON), "the mode ANY of function calling exclude"),
        (request(tool_config={"functionCallingConfig": {"allowedFunctionNames": ["f"]}}), "allowedFunctionNames"),
        (request(safetySettings=[{"category": "X", "threshold": "OFF"}]), "safetySettings[0].category"),
        (request(safetySettings=[{"category": HARM, "threshold": "SOME"}]), "safetySettings[0].threshold"),
        (request(safetySettings=[{"category": HARM, "method": "SEVERITY"}]), "safetySettings[0].method"),
        (request(labels={"team": 3}), "labels.team"),
        (request(serviceTier="priority"), "serviceTier"),
        (request(store=True), "store"),
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
        (image_request(mime="font/ttf"), "contents[0].parts[0].inlineData.mimeType"),
        (image_request(mime="text/plain"), "contents[0].parts[0].inlineData is not a text in UTF-8"),
        (image_request(mime="text/plain; charset=utf-16"), "the charset 'utf-16'"),
        (image_request(mime="application/pdf"), "contents[0].parts[0].inlineData: the data are not a PDF"),
        (image_request(mediaResolution={"level": "MEDIA_RESOLUTION_HUGE"}), "parts[0].mediaResolution.level"),
        (image_request(mediaResolution={"numTokens": 7}), "parts[0].mediaResolution.numTokens"),
        (image_request(videoMetadata={"fps": 1}), "parts[0].videoMetadata: the part is no video"),
        (with_part(text="x", videoMetadata={"fps": 1}), "parts[0].videoMetadata: the part is no medium"),
        (with_part(text="x", mediaResolution="MEDIA_RESOLUTION_LOW"), "parts[0].mediaResolution: the part is no medium"),
        (video(fps=0), "videoMetadata.fps"),
        (video(startOffset="3"), "videoMetadata.startOffset"),
        (video(startOffset="3s", endOffset="2s"), "videoMetadata.endOffset must be after"),
        (with_part(text="x", thoughtSignature=3), "thoughtSignature must be a string"),
        (with_part(text="x", executableCode={"code": "1"}), "parts[0].executableCode"),
        (with_part(fileData={"fileUri": "https://example.com/cat.png"}), "no other address is fetched"),
        (with_part(fileData={"fileUri": "file:///etc/passwd"}), "no other address is fetched"),
        (with_part(fileData={"fileUri": "https://host/v1beta/files/../../secret"}), "no other address is fetched"),
        (with_part(fileData={}), "no other address is fetched"),
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
        ({"responseMimeType": "image/png"}, "responseMimeType"),
        ({"response_schema": {"type": "OBJECT"}}, "responseSchema needs responseMimeType"),
        ({"responseJsonSchema": {"type": "object"}}, "responseJsonSchema needs responseMimeType"),
        (JSON | {"responseSchema": {}, "responseJsonSchema": {}}, "exclude each other"),
        (JSON | {"responseJsonSchema": "string"}, "generationConfig.responseJsonSchema"),
        (JSON | {"responseSchema": {"type": "TREE"}}, "generationConfig.responseSchema.type"),
        ({"responseMimeType": "text/x.enum"}, "generationConfig.responseSchema.enum"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"enum": [3]}}, "generationConfig.responseSchema.enum"),
        ({"logprobs": 3}, "logprobs needs that response_logprobs is true"),
        ({"logprobs": 0, "responseLogprobs": False}, "logprobs needs that response_logprobs is true"),
        ({"responseLogprobs": True, "logprobs": 21}, "logprobs must be"),
        ({"presencePenalty": 2.5}, "presence_penalty"),
        ({"responseModalities": ["AUDIO"]}, "AUDIO"),
        ({"speechConfig": {"voiceConfig": {}}}, "speechConfig"),
        ({"thinkingConfig": {"thinkingBudget": -2}}, "thinkingBudget"),
        ({"thinkingConfig": {"thinkingLevel": "DEEP"}}, "thinkingLevel"),
        ({"thinkingConfig": {"thinkingLevel": "HIGH", "thinkingBudget": -1}}, "exclude each other"),
        ({"thinkingConfig": {"depth": 1}}, "depth"),
        ({"mediaResolution": "LOW"}, "mediaResolution"),
        ({"imageConfig": {"outputMimeType": "image/jpeg"}}, "outputMimeType"),
        ({"imageConfig": {"imageSize": "4K"}}, "imageSize"),
        ({"candidateCount": 9}, "candidateCount"),
        ({"candidateCount": 0}, "candidateCount"),
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
        ({}, Thinking()),
        ({"thinkingBudget": 0}, Thinking()),
        ({"thinkingLevel": "MINIMAL"}, Thinking()),
        ({"includeThoughts": True, "thinkingBudget": 0}, Thinking()),
        ({"thinkingBudget": 512}, Thinking(True, False, 512, "thinkingBudget")),
        ({"thinkingBudget": -1}, Thinking(True, required="thinkingBudget")),
        ({"thinkingLevel": "high"}, Thinking(True, required="thinkingLevel")),
        ({"thinkingLevel": "LOW"}, Thinking(True, False, 512, "thinkingLevel")),
        ({"includeThoughts": True}, Thinking(True, True)),
        ({"includeThoughts": True, "thinkingBudget": 512}, Thinking(True, True, 512)),
        ({"includeThoughts": True, "thinkingLevel": "HIGH"}, Thinking(True, True)),
    ],
)
def test_thinking_is_read(thinking, expected):
    parsed = read(request(generationConfig={"thinkingConfig": thinking}))
    assert parsed.thinking == expected
    thinks = parsed.for_model(True)
    assert (thinks.prompt.thinking, thinks.sampling.thinking_budget) == (expected.is_on, expected.budget)
    if expected.required:
        with pytest.raises(WireError, match=f"{expected.required} is not offered"):
            parsed.for_model(False)
    else:
        # Clients ask for thoughts without knowing whether there are any.
        assert not parsed.for_model(False).prompt.thinking


@pytest.mark.parametrize(
    ("config", "tools", "output"),
    [
        ({}, ("f", "g"), None),
        ({"mode": "AUTO"}, ("f", "g"), None),
        ({"mode": "NONE"}, (), None),
        ({"mode": "ANY"}, ("f", "g"), OutputFormat(calls=("f", "g"))),
        ({"mode": "any", "allowed_function_names": ["g"]}, ("f", "g"), OutputFormat(calls=("g",))),
        ({"mode": "VALIDATED"}, ("f", "g"), OutputFormat(calls=("f", "g"), text_allowed=True)),
    ],
)
def test_modes_of_function_calling_are_read(config, tools, output):
    declared = [{"functionDeclarations": [{"name": "f"}, {"name": "g"}]}]
    parsed = read(request(tools=declared, toolConfig=calling(**config)))
    assert tuple(tool.name for tool in parsed.prompt.tools) == tools
    assert parsed.sampling.output == output


def test_an_answer_of_a_form_may_be_a_call_where_there_are_functions():
    parsed = read(request(tools=[FUNCTION], generationConfig=JSON))
    assert parsed.sampling.output == OutputFormat("{}", calls=("f",), text_allowed=True)


def respond(answer, body=None):
    return write_answers(Context(read(body or request()), "tiny", {"TEXT": 3}), [answer])


def test_every_response_has_a_part():
    last = respond(Answer(Content("model", ()), "stop", 3, 1))["candidates"][0]
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
