"""Who may send requests, and to which names of the model: keys, aliases, origins, pages of models."""

from __future__ import annotations

import httpx
import pytest
from google import genai
from google.genai import errors, types

from alhena.serve.gemini.server.settings import Settings, check_public, read_aliases
from tests.serve.conftest import running


@pytest.fixture(scope="module")
def guarded(tiny_engine):
    settings = Settings(aliases=("gemini-2.5-flash",), keys=("first", "second"), cors=("https://app.example",))
    with running(tiny_engine, "tiny", settings) as address:
        yield address


@pytest.mark.parametrize(
    ("headers", "query", "code"),
    [
        ({}, "", 403),
        ({"x-goog-api-key": "wrong"}, "", 400),
        ({"x-goog-api-key": "firs"}, "", 400),
        ({"Authorization": "Bearer wrong"}, "", 401),
        ({"x-goog-api-key": "first"}, "", 200),
        ({"x-goog-api-key": "sécond".encode()}, "", 400),
        ({"x-goog-api-key": "second"}, "", 200),
        ({"Authorization": "bearer first"}, "", 200),
        ({}, "?key=first", 200),
        ({}, "?key=wrong", 400),
        ({"x-goog-api-key": "wrong"}, "?key=first", 200),
    ],
)
def test_a_key_is_demanded_where_there_are_keys(guarded, headers, query, code):
    answer = httpx.get(f"{guarded}/v1beta/models{query}", headers=headers)
    assert answer.status_code == code
    if code != 200:
        assert set(answer.json()["error"]) == {"code", "message", "status"} and "first" not in answer.text


def test_the_sdk_sends_its_key(guarded):
    good = genai.Client(api_key="first", http_options=types.HttpOptions(base_url=guarded))
    assert good.models.get(model="tiny").name == "models/tiny"
    bad = genai.Client(api_key="other", http_options=types.HttpOptions(base_url=guarded))
    with pytest.raises(errors.ClientError, match="API key not valid"):
        bad.models.get(model="tiny")


def test_an_alias_is_another_name_of_the_model(guarded):
    client = genai.Client(api_key="first", http_options=types.HttpOptions(base_url=guarded))
    config = types.GenerateContentConfig(max_output_tokens=2)
    answer = client.models.generate_content(model="gemini-2.5-flash", contents="Hello", config=config)
    assert answer.model_version == "tiny"
    models = list(client.models.list(config={"page_size": 1}))
    assert [model.name for model in models] == ["models/tiny", "models/gemini-2.5-flash"]
    assert "embedContent" in models[0].supported_actions
    with pytest.raises(errors.ClientError, match="is not found") as error:
        client.models.generate_content(model="gemini-1.0", contents="Hello", config=config)
    assert error.value.code == 404
    assert list(client.models.list(config={"query_base": False})) == []
    with pytest.raises(errors.ServerError, match="tunes no model"):
        client.tunings._api_client.request("post", "tunedModels", {}, None)


def test_any_name_where_the_server_is_told_so(tiny_engine):
    with running(tiny_engine, "tiny", Settings(any_model=True)) as address:
        client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=address))
        assert client.models.get(model="gemini-9-pro").name == "models/gemini-9-pro"
        assert client.models.count_tokens(model="gemini-9-pro", contents="Hello").total_tokens
        assert [model.name for model in client.models.list()] == ["models/tiny"]


def test_only_a_named_origin_may_call_from_a_web_page(guarded):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-goog-api-key,content-type"}
    allowed, foreign = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
    answer = httpx.options(f"{guarded}/v1beta/models", headers={**allowed, **ask})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == allowed["Origin"]
    assert (
        "access-control-allow-origin"
        not in httpx.options(f"{guarded}/v1beta/models", headers={**foreign, **ask}).headers
    )
    headers = {**allowed, "x-goog-api-key": "first", "Sec-Fetch-Site": "cross-site"}
    answer = httpx.get(f"{guarded}/v1beta/models", headers=headers)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == allowed["Origin"]
    assert httpx.get(f"{guarded}/v1beta/models", headers={**headers, **foreign}).status_code == 403


def test_a_server_for_other_machines_needs_a_key():
    check_public("127.0.0.1", ())
    check_public("::1", ())
    check_public("0.0.0.0", ("key",))
    for host in ("0.0.0.0", "::", "192.168.1.5", "model.example"):
        with pytest.raises(ValueError, match="a key is needed"):
            check_public(host, ())


def test_settings_are_checked():
    for bad in ({"cors": ("*",)}, {"cors": ("https://a.example/path",)}, {"keys": ("",)}, {"keys": ("é",)}):
        with pytest.raises(ValueError, match=r"--cors|--api-key"):
            Settings(**bad)
    for bad in ("gemini", "=tiny", "a b=tiny", "a="):
        with pytest.raises(ValueError, match="write NAME=MODEL"):
            read_aliases((bad,))
