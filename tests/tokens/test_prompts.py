"""Prompts of every format equal the chat templates of their models (golden/make_prompts.py renders them), text by text and token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from alhena.content import Audio, Content, Image, Text, Thought, Tool, ToolCall, ToolResult, Video
from alhena.tokens.formats.conversation import render
from alhena.tokens.formats.prompts import CONTROLS, Variants
from alhena.tokens.gemma_encoder import GemmaEncoder
from tests.tokens.small_gemma import settings_of, tokenizer_of

CASES = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text())
# What of_template finds in the templates.
VARIANTS = {
    "gemma3": Variants(),
    "gemma4-large": Variants(empty_thought="turn"),
    "gemma4-small": Variants(),
    "gemma4-interleaved": Variants(empty_thought="always", thought_line_end=False),
    "gemma4-early": Variants(False, True, "always", thought_line_end=False),
}
MEDIA = {"image": Image(b""), "audio": Audio(b""), "video": Video(b"")}
PLACEHOLDERS = {
    "gemma3": {Image: "<start_of_image>"},
    "gemma4": {Image: "<|image|>", Audio: "<|audio|>", Video: "<|video|>"},
}


def contents_of(messages):
    """Contents of messages as chat templates read them."""
    out = []
    for m in messages:
        content = m["content"] if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]
        parts = [MEDIA.get(item["type"]) or Text(item["text"]) for item in content]
        if m["role"] != "assistant":
            out.append(Content(m["role"], tuple(parts)))
            continue
        calls = [ToolCall(c["function"]["name"], c["function"]["arguments"]) for c in m.get("tool_calls", [])]
        if not calls:
            out.append(Content("model", tuple(parts)))
            continue
        thoughts = [Thought(m["reasoning"])] if "reasoning" in m else []
        results = [
            ToolResult(r["name"], r["response"] if isinstance(r["response"], dict) else {"value": r["response"]})
            for r in m["tool_responses"]
        ]
        out += [Content("model", (*thoughts, *calls)), Content("tool", tuple(results))]
        out += [Content("model", tuple(parts))] if m["content"] else []
    return out  # fmt: skip


def format_of(case):
    return case["template"].partition("-")[0]


def settings_for(case):
    return settings_of(format_of(case), **vars(VARIANTS[case["template"]]))


def items_of(case):
    tools = [Tool(**tool) for tool in case["tools"]]
    return render(settings_for(case), contents_of(case["messages"]), tools, case["thinking"])


def written(items, settings):
    """Items as a template writes them."""
    names = {settings.controls[name]: token for name, token in CONTROLS[settings.format].items()}
    around = "\n\n" if settings.variants.media_paragraphs else ""
    out = ""
    for item in items:
        if isinstance(item.value, str | int):
            out += item.value if isinstance(item.value, str) else names[item.value]
        else:
            placeholder = PLACEHOLDERS[settings.format][type(item.value)]
            out += placeholder if isinstance(item.value, Audio) else f"{around}{placeholder}{around}"
    return out


def case_id(case):
    return f"{case['template']}-{case['name']}{'-thinking' if case['thinking'] else ''}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_prompts_equal_the_chat_templates(case):
    assert written(items_of(case), settings_for(case)) == case["text"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if not ("image" in c["name"] or c["name"] in ("media", "injected"))], ids=case_id
)
def test_tokens_equal_those_of_the_rendered_template(case):
    """The reference encodes the whole text, with the names of control tokens in it."""
    tokenizer = tokenizer_of(format_of(case))
    reference = Tokenizer.from_str(tokenizer.to_bytes().decode())
    assert not reference.encode_special_tokens
    encoder, tools = GemmaEncoder(tokenizer, settings_for(case)), [Tool(**tool) for tool in case["tools"]]
    # A tool's description and results that name control tokens must stay texts.
    marked = [m for m in ("<|turn> of", '<tool_response|><|"|>,temp') if m in case["text"]]
    tokens = encoder.prompt(contents_of(case["messages"]), tools, case["thinking"]).tokens.tolist()
    if marked:
        assert tokenizer.decode(tokens) == case["text"]
        assert tokens.count(encoder.settings.controls["turn"]) == case["text"].count("<|turn>") - case["text"].count(
            "<|turn> of"
        )
    else:
        assert tokens == reference.encode(case["text"], add_special_tokens=False).ids


@pytest.mark.parametrize("case", [c for c in CASES if c["name"] == "injected"], ids=case_id)
def test_names_of_control_tokens_in_a_text_stay_text(case):
    settings, tokenizer = settings_for(case), tokenizer_of(format_of(case))
    tokens = (
        GemmaEncoder(tokenizer, settings).prompt(contents_of(case["messages"]), (), case["thinking"]).tokens.tolist()
    )
    assert tokenizer.decode(tokens) == case["text"]
    plain = [Content(c.role, (Text("x"),)) for c in contents_of(case["messages"])]
    of_format = [item.value for item in render(settings, plain, (), case["thinking"]) if isinstance(item.value, int)]
    assert [token for token in tokens if token in tokenizer.controls] == of_format
