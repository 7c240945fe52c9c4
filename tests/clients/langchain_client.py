"""LangChain's adapter for Gemini against a scripted server: python langchain_client.py URL"""

import sys

import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI


class City(pydantic.BaseModel):
    """A city."""

    name: str
    people: int


@tool
def get_weather(city: str) -> dict:
    """The weather of a city."""
    return {"degrees": 7}


def main(url: str) -> None:
    model = ChatGoogleGenerativeAI(model="scripted", google_api_key="any", base_url=url, max_retries=1)
    answer = model.invoke("hello")
    assert answer.text == "Hello, friend.", answer
    assert answer.usage_metadata["total_tokens"] > 0
    chunks = list(model.stream("hello"))
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == "Hello, friend."
    messages = [HumanMessage("weather")]
    asked = model.bind_tools([get_weather]).invoke(messages)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Bern"})
    result = ToolMessage('{"degrees": 7}', tool_call_id=call["id"])
    assert model.bind_tools([get_weather]).invoke([*messages, asked, result]).text == "It is 7 degrees."
    structured = model.with_structured_output(City, method="json_schema")
    assert structured.invoke("city") == City(name="Bern", people=134_000)


if __name__ == "__main__":
    main(sys.argv[1])
