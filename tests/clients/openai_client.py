"""The openai package against a scripted server: python openai_client.py URL"""

import asyncio
import json
import sys

import openai
import pydantic

MODEL, USER = "scripted", [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class City(pydantic.BaseModel):
    name: str
    people: int


def check_chat(client: openai.OpenAI) -> None:
    """One answer, with a picture, and a stream with its token counts."""
    answer = client.chat.completions.create(model=MODEL, messages=USER, temperature=0.5, max_completion_tokens=20)
    assert answer.choices[0].message.content == "Hello, friend."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    content = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    with_picture = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert with_picture.usage.prompt_tokens > answer.usage.prompt_tokens
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True, stream_options=options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, friend."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == answer.usage
    assert len(chunks) > 2


def check_tools(client: openai.OpenAI) -> None:
    """A call, its result, and a streamed call."""
    messages = [{"role": "user", "content": "weather"}]
    asked = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0]
    call = asked.message.tool_calls[0]
    assert asked.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Bern"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 7}'}
    told = client.chat.completions.create(model=MODEL, messages=[*messages, asked.message, result], tools=TOOLS)
    assert told.choices[0].message.content == "It is 7 degrees."
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert json.loads(streamed.tool_calls[0].function.arguments) == {"city": "Bern"}


def check_errors(client: openai.OpenAI) -> None:
    """Errors have OpenAI's classes and name the field."""
    for bad, kind, param in (
        ({"logit_bias": {"1": 2}}, openai.BadRequestError, "logit_bias"),
        ({"temperature": 99}, openai.BadRequestError, None),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ):
        refused: openai.APIStatusError | None = None
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": USER, **bad})
        except kind as error:
            refused = error
        assert refused is not None, f"{bad} is not refused"
        assert refused.param == param, refused.body


async def check_async(url: str) -> None:
    async with openai.AsyncOpenAI(api_key="any", base_url=url) as client:
        asked = (client.chat.completions.create(model=MODEL, messages=USER) for _ in range(4))
        assert {answer.choices[0].message.content for answer in await asyncio.gather(*asked)} == {"Hello, friend."}


def main(address: str) -> None:
    for url in (f"{address}/v1", f"{address}/v1beta/openai"):
        client = openai.OpenAI(api_key="any", base_url=url, max_retries=0)
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        check_chat(client)
        check_tools(client)
        check_errors(client)
        parsed = client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "city"}], response_format=City
        )
        assert parsed.choices[0].message.parsed == City(name="Bern", people=134_000)
    asyncio.run(check_async(f"{address}/v1"))


if __name__ == "__main__":
    main(sys.argv[1])
