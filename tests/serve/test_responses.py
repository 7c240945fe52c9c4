"""Responses as the SDK's types read them: token counts, reasons, log-probabilities, safety ratings, signatures of thoughts."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from google.genai import types

from alhena.content import Content, Image, Text, Thought, Tool, ToolCall
from alhena.serve.answer import Answer, TokenLogprobs
from alhena.serve.gemini.generate import write_answers
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.gemini.wire.request import Served, read_request
from alhena.serve.gemini.wire.responses import Context
from alhena.serve.gemini.wire.settings.safety_settings import STEP, Ratings, Thresholds
from tests.conftest import random_image

HARASSMENT, HATE = "HARM_CATEGORY_HARASSMENT", "HARM_CATEGORY_HATE_SPEECH"
PNG = random_image(1).data


def classify(text: str) -> dict[str, float]:
    """Each "bad" of a text makes harassment more probable."""
    return {HARASSMENT: 1 - 0.5 ** text.count("bad"), HATE: 0.0}


def request(text="hi", **fields):
    body = {"contents": [{"parts": [{"text": text}]}], **fields}
    return read_request(body, "tiny", Served()).for_model(True, classify)


def answer(*parts, finish="stop", **fields):
    return Answer(Content("model", parts), finish, 7, 10, **fields)


def respond(request, *answers, **context):
    context = Context(request, "tiny", {"TEXT": 3, "IMAGE": 4}, classify=classify, **context)
    return types.GenerateContentResponse.model_validate(write_answers(context, list(answers)))


def settings(threshold, category=HARASSMENT):
    return {"safetySettings": [{"category": category, "threshold": threshold}]}


def test_tokens_are_counted_by_modality_over_all_candidates():
    got = respond(request(), answer(Image(PNG), thought_tokens=2, image_tokens=5), answer(Text("x"), cached_tokens=1))
    usage = got.usage_metadata
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (7, 18, 2)
    assert usage.total_token_count == 27 and usage.cached_content_token_count is None
    details = [(d.modality.value, d.token_count) for d in usage.candidates_tokens_details]
    assert details == [("TEXT", 13), ("IMAGE", 5)]
    assert [candidate.index for candidate in got.candidates] == [0, 1]
    assert got.candidates[0].content.parts[0].inline_data.data == PNG
    assert got.response_id and got.model_version == "tiny"
    assert abs((datetime.now(UTC) - got.create_time).total_seconds()) < 60


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answer(Text("x")), "STOP"),
        (answer(Text("x"), finish="length"), "MAX_TOKENS"),
        (answer(Text("x"), finish="malformed call"), "MALFORMED_FUNCTION_CALL"),
        (answer(ToolCall("f", {})), "STOP"),
        (answer(ToolCall("g", {})), "UNEXPECTED_TOOL_CALL"),
        (answer(Text("bad bad bad")), "SAFETY"),
    ],
)
def test_the_reason_says_why_an_answer_ended(answer, reason):
    declared = [{"functionDeclarations": [{"name": "f"}]}]
    candidate = respond(request(tools=declared, **settings("BLOCK_ONLY_HIGH")), answer).candidates[0]
    assert candidate.finish_reason == reason
    assert (candidate.content is None) == (reason == "SAFETY")
    assert (candidate.finish_message is None) == (reason in ("STOP", "MAX_TOKENS"))


def test_log_probabilities_name_tokens():
    tokens = (TokenLogprobs(1, -0.5, ((1, -0.5), (2, -1.0))), TokenLogprobs(3, -math.inf, ((1, 0.0), (2, -2.0))))
    asked = request(generationConfig={"responseLogprobs": True, "logprobs": 2})
    candidate = respond(asked, answer(Text("x"), logprobs=tokens), token_text=lambda token: f"t{token}").candidates[0]
    chosen = candidate.logprobs_result.chosen_candidates
    assert [(c.token, c.token_id) for c in chosen] == [("t1", 1), ("t3", 3)]
    assert math.isfinite(candidate.avg_logprobs) and chosen[0].log_probability == -0.5
    assert [[c.token for c in top.candidates] for top in candidate.logprobs_result.top_candidates] == [["t1", "t2"]] * 2
    assert respond(request(), answer(Text("x"), logprobs=tokens)).candidates[0].logprobs_result is None


@pytest.mark.parametrize(
    ("threshold", "level", "blocked"),
    [("BLOCK_NONE", "MEDIUM", None), ("BLOCK_ONLY_HIGH", "MEDIUM", None), ("BLOCK_MEDIUM_AND_ABOVE", "MEDIUM", True)],
)
def test_a_category_with_a_threshold_is_rated(threshold, level, blocked):
    rating = respond(request(**settings(threshold)), answer(Text("bad"))).candidates[0].safety_ratings[0]
    assert (rating.category, rating.probability, rating.blocked) == (HARASSMENT, level, blocked)


def test_what_is_off_or_not_named_is_not_rated():
    for fields in ({}, settings("OFF")):
        assert (
            respond(request("bad bad bad", **fields), answer(Text("bad bad bad"))).candidates[0].safety_ratings is None
        )


def test_a_blocked_prompt_has_no_candidates():
    got = respond(request("bad", **settings("BLOCK_LOW_AND_ABOVE")))
    assert got.candidates is None and got.prompt_feedback.block_reason == "SAFETY"
    assert got.prompt_feedback.safety_ratings[0].blocked
    assert got.usage_metadata.prompt_token_count == got.usage_metadata.total_token_count == 7


def test_a_category_that_cannot_be_rated_cannot_be_blocked():
    with pytest.raises(WireError, match="blocking HARM_CATEGORY_CIVIC_INTEGRITY is not offered"):
        request(**settings("BLOCK_ONLY_HIGH", "HARM_CATEGORY_CIVIC_INTEGRITY"))
    assert request(**settings("BLOCK_NONE", "HARM_CATEGORY_CIVIC_INTEGRITY"))


@pytest.mark.parametrize("size", [1, 7, STEP, 1000])
def test_ratings_do_not_depend_on_the_pieces_of_a_text(size):
    text = "good " * 100 + "bad " * 3 + "good " * 400
    whole, pieces = (Ratings(classify, Thresholds({HARASSMENT: 0.8, HATE: 0.8})) for _ in range(2))
    whole.feed(text)
    for start in range(0, len(text), size):
        pieces.feed(text[start : start + size])
    whole.end()
    pieces.end()
    assert whole.blocked and pieces.written() == whole.written()


def test_a_hidden_thought_comes_back_with_the_signature_of_its_call():
    got = respond(request(tools=[{"functionDeclarations": [{"name": "f"}]}]), answer(Thought("hm"), ToolCall("f", {})))
    (part,) = got.candidates[0].content.parts
    assert part.thought_signature and part.function_call.id
    thoughts = {"role": "model", "parts": [{"text": "h", "thought": True}, {"text": "m", "thought": True}]}
    model = {"role": "model", "parts": [part.model_dump(mode="json", by_alias=True, exclude_none=True)]}
    turns = [{"parts": [{"text": "hi"}]}, model, {"parts": [{"functionResponse": {"name": "f"}}]}]
    for history in (turns, [turns[0], thoughts, *turns[1:]]):
        parsed = read_request({"contents": history}, "tiny", Served()).prompt.contents[1].parts
        assert parsed == (Thought("hm"), ToolCall("f", {}, part.function_call.id))


@pytest.mark.parametrize("signature", ["", "c29tZXRoaW5n", "skip_thought_signature_validator", "no base64!"])
def test_signatures_of_others_mean_nothing(signature):
    call = {"functionCall": {"name": "f"}, "thoughtSignature": signature}
    turns = [
        {"parts": [{"text": "hi"}]},
        {"role": "model", "parts": [call]},
        {"parts": [{"functionResponse": {"name": "f"}}]},
    ]
    assert read_request({"contents": turns}, "tiny", Served()).prompt.contents[1].parts == (ToolCall("f", {}),)


class Caches:
    """One cached content."""

    def open(self, name: str):
        assert name == "cachedContents/1"
        contents = [{"parts": [{"text": "a"}]}]
        tools = [{"functionDeclarations": [{"name": "f"}]}]
        return {"contents": contents, "systemInstruction": "s", "tools": tools}, 5


def test_a_cached_content_is_the_beginning_of_the_prompt():
    body = {"contents": [{"parts": [{"text": "b"}]}], "cachedContent": "cachedContents/1"}
    got = read_request(body, "tiny", Served(caches=Caches()))
    assert got.prompt.contents == (Content("system", (Text("s"),)), Content("user", (Text("a"), Text("b"))))
    assert got.prompt.tools == (Tool("f"),)
    assert respond(got, answer(Text("x"))).usage_metadata.cached_content_token_count == 5
    with pytest.raises(WireError, match="systemInstruction and cachedContent exclude each other"):
        read_request({**body, "systemInstruction": "t"}, "tiny", Served(caches=Caches()))
