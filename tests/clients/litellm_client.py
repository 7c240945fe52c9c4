"""LiteLLM's adapter for Gemini against a scripted server: python litellm_client.py URL"""

import json
import sys

import litellm

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}]


def main(url: str) -> None:
    options = {"api_key": "any", "num_retries": 0}
    # Its adapter for Gemini appends models/NAME:generateContent, that for OpenAI chat/completions.
    for target in (
        {"model": "gemini/scripted", "api_base": f"{url}/v1beta"},
        {"model": "openai/scripted", "api_base": f"{url}/v1"},
    ):
        hello = [{"role": "user", "content": "hello"}]
        answer = litellm.completion(**target, messages=hello, **options)
        assert answer.choices[0].message.content == "Hello, friend.", answer
        assert answer.usage.total_tokens > 0
        chunks = litellm.completion(**target, messages=hello, stream=True, **options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, friend."
        messages = [{"role": "user", "content": "weather"}]
        asked = litellm.completion(**target, messages=messages, tools=TOOLS, **options).choices[0].message
        call = asked.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Bern"})
        result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": '{"degrees": 7}'}
        told = litellm.completion(**target, messages=[*messages, asked, result], tools=TOOLS, **options)
        assert told.choices[0].message.content == "It is 7 degrees."


if __name__ == "__main__":
    main(sys.argv[1])
