"""Imported models with images, audio and video, through the official SDK against the real server over loopback.

The weights are random, so answers are noise: they are compared with each other. Thoughts, calls and ends are those of a script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from rich.console import Console

from alhena.content import Content, Image, Part, Text, Thought, ToolCall, Video
from alhena.media import encode_png, encode_video
from alhena.serve.chat import Chat
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.engine import Engine, Prompt
from alhena.tokens.formats.tool_format import write_call
from tests.conftest import random_audio
from tests.serve.conftest import running
from tests.serve.imported_models import Scripted, write_imported

# A text of 120 tokens: all prompts are padded to 256 of them, which saves compilations.
LONG = "is it so? " * 12
IMAGE = Image(encode_png(np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)))
AUDIO = random_audio(2, 0.5)
VIDEO = encode_video([np.full((48, 48, 3), 90, np.uint8)], per_second=1)
MEDIA = [
    types.Part.from_bytes(data=IMAGE.data, mime_type="image/png"),
    types.Part.from_bytes(data=AUDIO.data, mime_type="audio/flac"),
    types.Part.from_bytes(data=VIDEO, mime_type="video/mp4"),
]
SCHEMA = types.Schema(type=types.Type.OBJECT, properties={"x": types.Schema(type=types.Type.STRING)})
TOOLS = [
    types.Tool(function_declarations=[types.FunctionDeclaration(name="see", description="See.", parameters=SCHEMA)])
]
MODE = types.FunctionCallingConfigMode


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_imported("gemma4_small", tmp_path_factory.mktemp("gemma4")))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_imported("gemma3_vision", tmp_path_factory.mktemp("gemma3")))


@contextmanager
def client_of(engine: Engine) -> Iterator[genai.Client]:
    with running(engine, "open") as address:
        yield genai.Client(api_key="any", http_options=types.HttpOptions(base_url=address))


@pytest.fixture(scope="module")
def client(gemma4: Engine) -> Iterator[genai.Client]:
    with client_of(gemma4) as client:
        yield client


def config(**settings: object) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(**({"max_output_tokens": 20, "seed": 3} | settings))


def thinking(**settings: object) -> types.GenerateContentConfig:
    return config(thinking_config=types.ThinkingConfig(**settings))


def parts_of(response: types.GenerateContentResponse) -> list[types.Part]:
    return response.candidates[0].content.parts


def text_of(response: types.GenerateContentResponse) -> str:
    return "".join(part.text or "" for part in parts_of(response))


def ask(client: genai.Client, contents: object, settings: types.GenerateContentConfig) -> types.GenerateContentResponse:
    return client.models.generate_content(model="open", contents=contents, config=settings)


# ── real answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_images_audio_and_video_are_answered_whole_and_as_a_stream(client, gemma4):
    request = {"model": "open", "contents": [*MEDIA, "the lambs"], "config": config(system_instruction="Be brief.")}
    whole = client.models.generate_content(**request)
    assert len(text_of(whole)) > 5
    events = list(client.models.generate_content_stream(**request))
    assert "".join(map(text_of, events)) == text_of(whole)
    assert events[-1].candidates[0].finish_reason == whole.candidates[0].finish_reason == "MAX_TOKENS"
    usage = whole.usage_metadata
    assert events[-1].usage_metadata == usage
    details = {detail.modality.value: detail.token_count for detail in usage.prompt_tokens_details}
    assert details["IMAGE"] == details["VIDEO"] == 64 and details["AUDIO"] > 5
    assert sum(details.values()) == usage.prompt_token_count
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (20, None)
    # The system instruction is part of the prompt; counted alone the contents have fewer tokens.
    counted = client.models.count_tokens(model="open", contents=request["contents"])
    assert 20 < counted.total_tokens < usage.prompt_token_count
    shorter = ask(client, [*MEDIA, "the lambs"], config(system_instruction="Be verbose."))
    assert text_of(shorter) != text_of(whole)


def test_an_answer_is_the_same_alone_in_a_batch_and_streamed(gemma4):
    """The window of the sliding layers is shorter than prompts and answers."""
    assert gemma4.config.decoder.window < 20
    prompts = [[Content("user", parts)] for parts in ((Text(LONG),), (IMAGE, AUDIO, Video(VIDEO), ANSWER))]
    samplings = [replace(gemma4.default_sampling, max_tokens=20, seed=seed) for seed in (5, 6)]
    together = gemma4.generate(prompts, samplings)
    for prompt, sampling, whole in zip(prompts, samplings, together, strict=True):
        assert gemma4.generate([prompt], sampling) == [whole]
        assert [*gemma4.stream(prompt, sampling)][-1] == whole


def test_answers_are_sampled_as_the_publisher_recommends(client, gemma4):
    default = gemma4.default_sampling
    assert (default.temperature, default.top_k, default.top_p, default.max_tokens) == (0.7, 20, 0.9, 1024)
    card = client.models.get(model="open")
    assert (card.temperature, card.top_k, card.top_p) == (0.7, 20, 0.9)
    assert (card.input_token_limit, card.thinking) == (1024, True)
    same = config(temperature=0.7, top_k=20, top_p=0.9)
    assert text_of(ask(client, LONG, config())) == text_of(ask(client, LONG, same))
    assert text_of(ask(client, LONG, config())) != text_of(ask(client, LONG, config(temperature=0)))


def greedy(engine: Engine) -> list[int]:
    """The tokens of a greedy answer."""
    sampling = Sampling(max_tokens=20, logprobs=0)
    return [t.token for t in engine.generate([[Content("user", (Text(LONG),))]], sampling)[0].logprobs]


def test_placeholders_marks_and_ids_without_a_token_are_never_sampled(gemma4):
    tokens = greedy(gemma4)[:20]
    never = [*gemma4.encoder.never_sampled, *range(gemma4.encoder.tokenizer.size, gemma4.config.vocabulary)]
    assert set(gemma4.encoder.placeholders.values()) < set(never) and len(never) > 10
    table = jnp.asarray(gemma4.params.embedding)
    # Now the logits of each of them are thrice the largest.
    louder = replace(
        gemma4, params=replace(gemma4.params, embedding=table.at[jnp.array(never)].set(3 * table[tokens[0]]))
    )
    assert greedy(louder)[0] == tokens[0]
    assert not set(never) & set(greedy(louder)[:20])


@pytest.mark.parametrize("end", ["<eos>", "<unused3>"])
def test_an_end_token_ends_an_answer(gemma4, end):
    token, s = gemma4.encoder.tokenizer.id(end), gemma4.encoder.settings
    assert set(gemma4.constraints.end_tokens) > {token, s.controls["turn_end"], s.controls["response"]}
    table, first = jnp.asarray(gemma4.params.embedding), greedy(gemma4)[0]
    ending = replace(gemma4, params=replace(gemma4.params, embedding=table.at[token].set(3 * table[first])))
    answer = ending.generate([[Content("user", (Text(LONG),))]], Sampling(max_tokens=20))[0]
    assert (answer.finish, answer.answer_tokens, answer.content.parts) == ("stop", 1, ())


# ── thoughts and calls ───────────────────────────────────────────────────────────────────────────────────────────────


def script(engine: Engine, *parts: Part | str) -> list[int]:
    """Tokens of an answer: parts, and names of control tokens."""
    controls, items = engine.encoder.settings.controls, list[str | int]()
    for part in parts:
        if isinstance(part, Thought):
            items += [controls["channel"], f"thought\n{part.text}\n", controls["channel_end"]]
        elif isinstance(part, ToolCall):
            items += [controls["call"], *write_call(part, controls["quote"]), controls["call_end"]]
        else:
            items.append(controls[part] if isinstance(part, str) else part.text)
    tokens = []
    for item in items:
        tokens += [item] if isinstance(item, int) else engine.encoder.tokenizer.encode(item)
    return tokens


THOUGHT, ANSWER = Thought("a lamb is here"), Text("the lambs")
CALL = ToolCall("see", {"x": "is", "y": 2})


@contextmanager
def scripted(engine: Engine, *parts: Part | str) -> Iterator[genai.Client]:
    with client_of(Scripted.of(engine, script(engine, *parts))) as client:
        yield client


def test_thoughts_are_counted_apart_and_included_where_they_are_requested(gemma4):
    tokens = len(script(gemma4, THOUGHT)), len(script(gemma4, ANSWER, "turn_end"))
    wide = {"max_output_tokens": 32}
    with scripted(gemma4, THOUGHT, ANSWER, "turn_end") as client:
        included = thinking(include_thoughts=True, thinking_budget=-1, **{}).model_copy(update=wide)
        whole = ask(client, LONG, included)
        assert [(p.text, p.thought) for p in parts_of(whole)] == [(THOUGHT.text, True), (ANSWER.text, None)]
        usage = whole.usage_metadata
        assert (usage.thoughts_token_count, usage.candidates_token_count) == tokens
        assert usage.total_token_count == usage.prompt_token_count + sum(tokens)
        assert whole.candidates[0].finish_reason == "STOP"
        events = list(client.models.generate_content_stream(model="open", contents=LONG, config=included))
        streamed = [part for event in events for part in parts_of(event) if part.text]
        assert "".join(part.text for part in streamed if part.thought) == THOUGHT.text
        assert "".join(part.text for part in streamed if not part.thought) == ANSWER.text
        assert events[-1].usage_metadata == usage
        for settings in (thinking(thinking_budget=-1), thinking(thinking_budget=0, include_thoughts=True)):
            hidden = ask(client, LONG, settings.model_copy(update=wide))
            assert [part.text for part in parts_of(hidden)] == [ANSWER.text]
            assert hidden.usage_metadata.thoughts_token_count == tokens[0]
        chat = client.chats.create(model="open", config=included, history=[])
        chat.send_message(LONG)
        # Thoughts of earlier turns come back with the history and are left out of the prompt.
        assert [part.thought for part in chat.get_history()[-1].parts] == [True, None]
        assert chat.send_message("the").text == ANSWER.text


def test_a_model_is_told_to_think(gemma4, client):
    plain, told = (
        gemma4.encode(Prompt((Content("user", (Text(LONG),)),), thinking=value)).tokens for value in (False, True)
    )
    assert gemma4.encoder.settings.controls["think"] in told.tolist() and len(told) > len(plain)
    count = lambda settings: ask(client, LONG, settings).usage_metadata.prompt_token_count  # noqa: E731
    for off in (config(), thinking(thinking_budget=0), thinking(thinking_level="MINIMAL")):
        assert count(off) == len(plain)
    limited = thinking(thinking_budget=100)
    for on in (thinking(thinking_budget=-1), thinking(thinking_level="LOW"), thinking(include_thoughts=True), limited):
        assert count(on) == len(told)


def test_functions_are_declared_called_and_answered(gemma4):
    tools = config(tools=TOOLS, max_output_tokens=32, system_instruction=LONG[:60])
    with scripted(gemma4, CALL, "response") as client:
        calling = ask(client, "the", tools)
        call = parts_of(calling)[0].function_call
        assert (call.name, call.args) == (CALL.name, CALL.arguments)
        assert (calling.candidates[0].finish_reason, len(parts_of(calling))) == ("STOP", 1)
        *_, last = client.models.generate_content_stream(model="open", contents="the", config=tools)
        assert parts_of(last)[0].function_call.args == CALL.arguments
    turns = [
        types.Content(role="user", parts=[types.Part(text="the")]),
        calling.candidates[0].content,
        types.Content(role="user", parts=[types.Part.from_function_response(name="see", response={"temp": 21})]),
    ]
    with scripted(gemma4, ANSWER, "turn_end") as client:
        answer = ask(client, turns, tools)
        assert answer.text == ANSWER.text
        assert answer.usage_metadata.prompt_token_count > calling.usage_metadata.prompt_token_count
        none = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode=MODE.NONE))
        undeclared = ask(client, LONG[:60], tools.model_copy(update={"tool_config": none})).usage_metadata
        assert undeclared.prompt_token_count < calling.usage_metadata.prompt_token_count
        unanswered = [*turns[:2], types.Content(role="user", parts=[types.Part(text="well?")])]
        with pytest.raises(errors.ClientError, match=r"400.*results"):
            ask(client, unanswered, tools)


def test_a_call_that_is_enforced_is_one_of_the_allowed_functions(client):
    schema = types.Schema(
        type=types.Type.OBJECT, properties={"on": types.Schema(type=types.Type.BOOLEAN)}, required=["on"]
    )
    names = [types.FunctionDeclaration(name=name, description=name, parameters=schema) for name in ("see", "hear")]
    tools = config(tools=[types.Tool(function_declarations=names)], max_output_tokens=60)
    for mode in (MODE.ANY, MODE.VALIDATED):
        calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=["hear"])
        answer = ask(client, "the", tools.model_copy(update={"tool_config": {"function_calling_config": calling}}))
        calls = answer.function_calls or []
        assert calls or mode == MODE.VALIDATED
        assert all(call.name == "hear" and isinstance(call.args["on"], bool) and call.id for call in calls)


def test_the_sdk_calls_functions_by_itself(gemma4):
    def see(x: str, y: int) -> dict[str, int]:
        """See."""
        called.append((x, y))
        return {"temp": 21}

    called: list[tuple[str, int]] = []
    limit = types.AutomaticFunctionCallingConfig(maximum_remote_calls=2)
    settings = config(tools=[see], automatic_function_calling=limit, max_output_tokens=32, system_instruction=LONG[:20])
    with scripted(gemma4, CALL, "response") as client:
        ask(client, "the", settings)
    assert called[0] == ("is", 2)


def test_a_stop_sequence_ends_an_answer_but_no_thought(gemma4):
    with scripted(gemma4, Thought("is"), Text("the lambs is here"), "turn_end") as client:
        settings = config(stop_sequences=["is"], max_output_tokens=32)
        answer = ask(
            client, LONG, settings.model_copy(update={"thinking_config": types.ThinkingConfig(thinking_budget=-1)})
        )
        assert (answer.text, answer.candidates[0].finish_reason) == ("the lambs ", "STOP")


def test_the_terminal_chat_shows_thoughts_and_calls(gemma4, capsys):
    def session(*parts: Part | str) -> list[Content]:
        engine = Scripted.of(gemma4, script(gemma4, *parts))
        return Chat(engine, Console(width=60), Sampling(max_tokens=32), thinking=True).reply([], LONG)

    turns = session(THOUGHT, ANSWER, "turn_end")
    assert turns[-1] == Content("model", (THOUGHT, ANSWER))
    assert f"{THOUGHT.text}\n{ANSWER.text}\n" in capsys.readouterr().out
    # Nothing answers the call, so the turn cannot be part of a prompt.
    assert session(CALL, "response") == []
    assert 'calls see{"x": "is", "y": 2}' in (out := capsys.readouterr().out)
    assert "this chat runs no tools" in out


# ── what a family cannot do ──────────────────────────────────────────────────────────────────────────────────────────


def streamed(client: genai.Client, contents: object, settings: types.GenerateContentConfig) -> Sequence[object]:
    return [*client.models.generate_content_stream(model="open", contents=contents, config=settings)]


def test_gemma_3_reads_images_and_refuses_the_rest_before_the_stream_begins(gemma3):
    calls = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode=MODE.AUTO))
    cases = [
        ([MEDIA[1], "the"], config(), "audio"),
        ("the", config(tools=TOOLS, tool_config=calls), "gemma3 has no tools"),
        ("the", thinking(thinking_budget=-1), "does not think"),
        ("the", config(response_modalities=["TEXT", "IMAGE"]), "generates no images"),
        ("the lambs " * 1100, config(), "at most 1,024"),
    ]
    with client_of(gemma3) as client:
        for contents, settings, message in cases:
            for call in (ask, streamed):
                with pytest.raises(errors.ClientError, match=message) as refused:
                    call(client, contents, settings)
                assert refused.value.code == 400
        request = [MEDIA[0], MEDIA[2], "the lambs"], config(system_instruction="the")
        whole = ask(client, *request)
        assert "".join(map(text_of, streamed(client, *request))) == text_of(whole)
        details = {detail.modality.value: detail.token_count for detail in whole.usage_metadata.prompt_tokens_details}
        assert details["IMAGE"] == 2 * 16 and set(details) == {"TEXT", "IMAGE"}
        # Clients ask for thoughts of any model: this one has none.
        same = ask(client, request[0], thinking(include_thoughts=True).model_copy(update={"system_instruction": "the"}))
        assert text_of(same) == text_of(whole)
        assert client.models.get(model="open").thinking is not True


def test_images_out_and_audio_without_an_encoder_are_refused(client):
    with pytest.raises(errors.ClientError, match=r"400.*generates no images"):
        streamed(client, "the", config(response_modalities=["IMAGE"]))
