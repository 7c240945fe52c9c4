"""The model of the package through the official SDK: what an application developer tries first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import types

from alhena.cli.arguments import PACKAGED
from alhena.serve.engine import Engine
from tests.serve.conftest import running

MODEL = "alhena-nano"


@pytest.fixture(scope="module")
def client() -> Iterator[genai.Client]:
    with running(Engine.load(PACKAGED), MODEL) as address:
        yield genai.Client(api_key="any", http_options={"base_url": address})


def get_weather(city: str) -> dict[str, Any]:
    """The weather of a city."""
    return {"temperature": 21, "sky": "sunny" if city == "Oslo" else "cloudy"}


def set_timer(minutes: int) -> dict[str, str]:
    """Starts a timer."""
    return {"status": "ok"}


def test_a_function_is_called_and_its_result_is_answered(client):
    chat = client.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[get_weather, set_timer]))
    answer = chat.send_message("What is the weather in Oslo?").text
    assert "21" in answer and "sunny" in answer
    call, result = chat.get_history()[1:3]
    assert call.parts[0].function_call.args == {"city": "Oslo"}
    assert result.parts[0].function_response.name == "get_weather"


def test_json_of_a_schema_holds_the_values_of_a_sentence(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=schema)
    question = "Extract name and age as JSON: Anna from Bern is 31 years old."
    assert client.models.generate_content(model=MODEL, contents=question, config=config).parsed == {
        "name": "Anna",
        "age": 31,
    }


def test_an_image_is_generated(client):
    config = types.GenerateContentConfig(response_modalities=["IMAGE"])
    parts = client.models.generate_content(model=MODEL, contents="Draw a red circle.", config=config).parts
    assert [part.inline_data.mime_type for part in parts] == ["image/png"]
