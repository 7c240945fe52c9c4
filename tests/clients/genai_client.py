"""google-genai of any version from 1.0 on against a scripted server, in both of its forms: python genai_client.py URL"""

import asyncio
import sys

from google import genai
from google.genai import errors, types

HELLO = "Hello, friend."


def get_weather(city: str) -> dict:
    """The weather of a city."""
    assert city == "Bern"
    return {"degrees": 7}


def check(client: genai.Client) -> None:
    models = client.models
    assert models.generate_content(model="scripted", contents="hello").text == HELLO
    chunks = [chunk.text for chunk in models.generate_content_stream(model="scripted", contents="hello")]
    assert "".join(chunks) == HELLO
    assert len(chunks) > 1
    assert models.count_tokens(model="scripted", contents="hello there").total_tokens > 0
    assert [model.name for model in models.list()] == ["models/scripted"]
    assert models.get(model="scripted").name == "models/scripted"
    config = types.GenerateContentConfig(tools=[get_weather], system_instruction="Be brief.")
    chat = client.chats.create(model="scripted", config=config)
    # The SDK calls the function and sends its result.
    assert chat.send_message("weather").text == "It is 7 degrees."
    message = ""
    try:
        models.generate_content(model="scripted", contents="hello", config={"temperature": 99})
    except (errors.ClientError, ValueError) as error:
        message = str(error)
    assert "emperature" in message, message or "a temperature of 99 is not refused"


async def check_async(client: genai.Client) -> None:
    models = client.aio.models
    assert (await models.generate_content(model="scripted", contents="hello")).text == HELLO
    stream = models.generate_content_stream(model="scripted", contents="hello")
    # In the first versions this was an iterator, later a coroutine of one.
    stream = await stream if asyncio.iscoroutine(stream) else stream
    assert "".join([chunk.text async for chunk in stream]) == HELLO
    chat = client.aio.chats.create(model="scripted", config=types.GenerateContentConfig(tools=[get_weather]))
    assert (await chat.send_message("weather")).text == "It is 7 degrees."


def main(url: str) -> None:
    for version in ("v1", "v1beta"):
        client = genai.Client(api_key="any", http_options={"base_url": url, "api_version": version})
        check(client)
        asyncio.run(check_async(client))


if __name__ == "__main__":
    main(sys.argv[1])
