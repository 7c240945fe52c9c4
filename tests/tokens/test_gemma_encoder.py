"""The encoder of imported models: media as their processors expand them, loss on what the model writes, stored and read back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from alhena.batch import Modality
from alhena.content import Audio, Content, Document, Image, Text, Thought, Tool, ToolCall, ToolResult, Video
from alhena.media import encode_audio, encode_png, encode_video
from alhena.model import config
from alhena.tokens.encoders import load_encoder
from alhena.tokens.example_builder import ExampleBuilder
from alhena.tokens.formats.conversation import Item
from alhena.tokens.formats.prompts import CONTROLS, PromptSettings, Variants, read_facts, read_template
from alhena.tokens.gemma_encoder import TEXT_WEIGHT, GemmaEncoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from tests.tokens.small_gemma import settings_of, tokenizer_of
from tests.tokens.small_hf_tokenizer import CONTROLS as BASE
from tests.tokens.small_hf_tokenizer import small_tokenizer

SQUARE = config.Vision(8, 1, 2, 8, patch=4, pool=2, side=4, plain=True, mean_pool=True)
VIT = config.GemmaVision(8, 1, 2, 4, 8)
CONFORMER = config.Usm(8, 1, 2, 8, mels=8, channels=(8, 4), stack=1, chunk=3000, variant="gemma4", output=8)
CONFORMER_3N = replace(CONFORMER, stack=4, chunk=3008, variant="gemma3n", output=None)
PIXELS = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
IMAGE = Image(encode_png(PIXELS))
AUDIO = Audio(encode_audio(np.sin(np.arange(16_000) / 9).astype(np.float32)))


def encoder_of(format, vision=None, audio=None, **variants):
    settings = settings_of(format, **variants)
    small = replace(settings.budgets, image_tokens=4 if format == "gemma3" else 70, clip_frames=3)
    return GemmaEncoder(tokenizer_of(format), replace(settings, budgets=small), vision, audio)


GEMMA3 = encoder_of("gemma3", SQUARE)
GEMMA3N = encoder_of("gemma3n", None, CONFORMER_3N)
GEMMA4 = encoder_of("gemma4", VIT, CONFORMER)


def reference(encoder, text):
    """Tokens of a text with the names of control tokens in it, as the references encode it."""
    return Tokenizer.from_str(encoder.tokenizer.to_bytes().decode()).encode(text, add_special_tokens=False).ids


def user(*parts):
    return [Content("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))]


# ── media ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_line_ends_around_images_of_gemma_3_merge():
    example = GEMMA3.prompt(user("Two:\n", IMAGE, IMAGE, " and\n\n", IMAGE))
    image = "\n\n<start_of_image>" + 4 * "<image_soft_token>" + "<end_of_image>\n\n"
    text = f"<bos><start_of_turn>user\nTwo:{image}{image}and{image}<end_of_turn>\n<start_of_turn>model\n"
    assert example.tokens.tolist() == reference(GEMMA3, text)
    assert GEMMA3.tokenizer.id("\n\n\n\n") in example.tokens
    assert example.patches.shape == (48, 48) and example.patch_images.tolist() == [1] * 16 + [2] * 16 + [3] * 16
    assert example.modality.tolist() == [Modality.IMAGE] * len(example.tokens)


def test_images_and_audio_of_gemma_4():
    example = GEMMA4.prompt(user("a", IMAGE, "b", AUDIO, "c"))
    # 12 x 20 pixels in 70 tokens: 6 x 10; 16,000 samples: 99 frames.
    image, audio = "<|image>" + 60 * "<|image|>" + "<image|>", "<|audio>" + 25 * "<|audio|>" + "<audio|>"
    text = f"<bos><|turn>user\na{image}b{audio}c<turn|>\n<|turn>model\n"
    assert example.tokens.tolist() == reference(GEMMA4, text)
    assert example.patches.shape == (60 * 9, 768) and example.frame_lengths.tolist() == [99]
    assert example.frames.dtype == np.float32
    early = encoder_of("gemma4", VIT, CONFORMER, media_paragraphs=True)
    text = text.replace(image, f"\n\n{image}\n\n")
    assert early.prompt(user("a", IMAGE, "b", AUDIO, "c")).tokens.tolist() == reference(early, text)


def test_audio_of_gemma_3n():
    audio = "\n\n<start_of_audio>" + 188 * "<audio_soft_token>" + "<end_of_audio>\n\n"
    text = f"<bos><start_of_turn>user\nHear:{audio}<end_of_turn>\n<start_of_turn>model\n"
    assert GEMMA3N.prompt(user("Hear:", AUDIO)).tokens.tolist() == reference(GEMMA3N, text)
    with pytest.raises(ValueError, match="MobileNetV5"):
        GEMMA3N.prompt(user(IMAGE))


def test_video_is_frames_with_their_times():
    frames = [np.full((96, 96, 3), 9 * i, np.uint8) for i in range(6)]
    video = Video(encode_video(frames, per_second=1))
    # Of six frames the 0th, 2nd and 4th.
    shown = " ".join(f"00:0{t} <|image>" + 64 * "<|video|>" + "<image|>" for t in (0, 2, 4))
    text = f"<bos><|turn>user\nSee {shown}<turn|>\n<|turn>model\n".replace("See ", "See")
    example = GEMMA4.prompt(user("See ", video))
    assert example.tokens.tolist() == reference(GEMMA4, text)
    assert np.unique(example.patch_images).tolist() == [1, 2, 3] and set(example.modality) == {Modality.VIDEO}
    image = "\n\n<start_of_image>" + 4 * "<image_soft_token>" + "<end_of_image>\n\n"
    text = f"<bos><start_of_turn>user\n{3 * image}<end_of_turn>\n<start_of_turn>model\n"
    assert GEMMA3.prompt(user(video)).tokens.tolist() == reference(GEMMA3, text)


def test_media_in_the_result_of_a_tool():
    call = Content("model", (ToolCall("camera", {}),))
    result = Content("tool", (ToolResult("camera", {"ok": True}, (IMAGE,)),))
    tokens = GEMMA4.prompt([*user("Look"), call, result]).tokens.tolist()
    text = "<bos><|turn>user\nLook<turn|>\n<|turn>model\n<|tool_call>call:camera{}<tool_call|>"
    text += "<|tool_response>response:camera{ok:true}<tool_response|><|image>" + 60 * "<|image|>" + "<image|>"
    assert tokens == reference(GEMMA4, text)


def test_media_without_an_encoder_and_audio_that_is_too_long_are_refused():
    for part, kind in ((IMAGE, "image"), (AUDIO, "audio")):
        with pytest.raises(ValueError, match=f"{kind}, but this model has no"):
            encoder_of("gemma4").prompt(user(part))
    with pytest.raises(ValueError, match="reads no audio"):
        GEMMA3.prompt(user(AUDIO))
    with pytest.raises(ValueError, match=r"31\.0 s; this model reads at most 30 s"):
        GEMMA4.prompt(user(Audio(encode_audio(np.zeros(31 * 16_000, np.float32)))))


# ── training ───────────────────────────────────────────────────────────────────────────────────────────────


def learned(encoder, *contents, **facts):
    """The tokens that are learned, with the names of control tokens; the loss weights are 0 or 1."""
    document = Document(tuple(contents), "d", "s", facts=facts)
    (example,) = encoder.encode(document, 10_000)
    assert set(example.weights) <= {0.0, 1.0} and example.targets[:-1].tolist() == example.tokens[1:].tolist()
    return encoder.tokenizer.decode(example.targets[example.weights == 1].tolist()), example


USER, MODEL = Content("user", (Text(" a lamb\n"),)), Content("model", (Text(" the lambs "),))


def test_the_model_learns_its_turns_and_their_ends():
    assert learned(GEMMA3, USER, MODEL, USER, MODEL)[0] == 2 * "the lambs<end_of_turn>"
    text, example = learned(GEMMA4, USER, MODEL)
    assert text == "the lambs<turn|>"
    prompt = GEMMA4.prompt([USER]).tokens.tolist()
    assert example.tokens.tolist() == prompt + reference(GEMMA4, "the lambs<turn|>\n")
    # An answer without a thought is learned after the empty one, as it will be asked.
    large = encoder_of("gemma4", empty_thought="turn")
    text, example = learned(large, USER, MODEL)
    prompt = large.prompt([USER]).tokens.tolist()
    assert text == "the lambs<turn|>" and example.tokens[: len(prompt)].tolist() == prompt


def test_thoughts_and_calls_are_learned_and_results_are_not():
    call = Content("model", (Thought("Hm."), ToolCall("f", {"a": "b"}), ToolCall("g", {})))
    results = Content("tool", (ToolResult("f", {"value": 1}), ToolResult("g", {})))
    calls = '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|tool_call>call:g{}<tool_call|><|tool_response>'
    text, example = learned(
        GEMMA4, USER, call, results, MODEL, tools=[{"name": "f"}, {"name": "g", "description": "G"}]
    )
    assert text == f"<|channel>thought\nHm.\n<channel|>{calls}the lambs<turn|>"
    start = '<bos><|turn>system\n<|think|>\n<|tool>declaration:f{description:<|"|><|"|>}<tool|>'
    assert GEMMA4.tokenizer.decode(example.tokens.tolist()).startswith(start)
    # A document may end with a call.
    assert learned(GEMMA4, USER, call)[0].endswith(calls)
    # Thoughts before the last user turn are removed.
    assert (
        learned(GEMMA4, USER, Content("model", (Thought("Hm."), Text("x"))), USER, MODEL)[0]
        == "x<turn|>the lambs<turn|>"
    )


def test_the_weight_of_a_token_is_that_of_its_first_character():
    """A result that ends with a line end, an answer that begins with one: the pieces are encoded as one text."""
    builder = ExampleBuilder()
    GEMMA4._add(builder, [Item("a\n"), Item("\nthe", True), Item("b", False)], 1.0)
    assert [GEMMA4.tokenizer.decode([token]) for token in builder.tokens] == ["a", "\n\n", "the", "b"]
    assert builder.weights == [0, 0, 1, 0]


def test_running_text_is_split():
    document = Document((Content("document", (Text("a b c "), Text("d e f"))),), "d", "s")
    examples = GEMMA3.encode(document, 100, window=5)
    controls = GEMMA3.settings.controls
    assert (
        all(e.tokens[0] == controls["bos"] and len(e.tokens) <= 5 for e in examples)
        and examples[-1].tokens[-1] == controls["eos"]
    )
    tokens = [token for e in examples for token in e.tokens[1:].tolist()]
    assert GEMMA3.tokenizer.decode(tokens) == "a b c d e f<eos>"
    # Each token is a target once.
    learned = [target for e in examples for target in e.targets[e.weights == np.float32(TEXT_WEIGHT)].tolist()]
    assert learned == tokens and sum(e.weights.sum() for e in examples) == TEXT_WEIGHT * len(tokens)
    page = Document((Content("document", (Text("See "), IMAGE, Text(" this"))),), "d", "s")
    (example,) = GEMMA3.encode(page, 100)
    image = "\n\n<start_of_image>" + 4 * "<image_soft_token>" + "<end_of_image>\n\n"
    assert example.tokens.tolist() == reference(GEMMA3, f"<bos>See {image} this<eos>")
    assert example.weights.sum() == TEXT_WEIGHT * (len(reference(GEMMA3, "See ")) + len(reference(GEMMA3, " this")) + 1)
    with pytest.raises(ValueError, match="at most 9 fit"):
        GEMMA3.encode(page, 9)


# ── variants of the newest templates ───────────────────────────────────────────────────────────────────────


def prompt_text(contents, thinking=False, **variants):
    encoder = encoder_of("gemma4", **variants)
    return encoder.tokenizer.decode(encoder.prompt(contents, (), thinking).tokens.tolist())


def test_a_thought_after_the_results_of_tools():
    called = [USER, Content("model", (ToolCall("f", {"a": None}),)), Content("tool", (ToolResult("f", {}),))]
    end = "<|tool_call>call:f{a:null}<tool_call|><|tool_response>response:f{}<tool_response|>"
    assert prompt_text(called, True, thought_after_results=True).endswith(f"{end}<|channel>thought\n")
    assert prompt_text(called, False, thought_after_results=True).endswith(end)
    encoder = encoder_of("gemma4", thought_after_results=True)
    parser = encoder.parser(encoder.prompt(called, (), True).tokens)
    assert parser.feed(encoder.tokenizer.id("a")) == [Thought("a")]
    assert encoder.parser(encoder.prompt(called).tokens).feed(encoder.tokenizer.id("a")) == [Text("a")]


def test_consecutive_turns_of_the_model_are_one():
    turns = [USER, Content("model", (Text("one "),)), Content("model", (Text("two"),)), USER]
    assert "<|turn>model\none two<turn|>\n<|turn>user\n" in prompt_text(turns)
    # Results before a user turn: the model's turn ends.
    turns = [USER, Content("model", (ToolCall("f", {}),)), Content("tool", (ToolResult("f", {}),)), USER]
    assert "<tool_response|><turn|>\n<|turn>user\n" in prompt_text(turns)


CALL, RESULT = Content("model", (ToolCall("f", {}),)), Content("tool", (ToolResult("f", {}),))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([], "at least one turn"),
        ([USER, CALL], "the last turn calls tools"),
        ([USER, CALL, USER], "a user turn after calls"),
        ([USER, RESULT], "no turn of the model"),
        ([USER, CALL, RESULT, RESULT], "does not call"),
        ([USER, Content("model", (*CALL.parts, ToolCall("g", {}))), RESULT], "'g' has no result"),
        ([USER, Content("system", (Text("x"),))], "only the first turn"),
        ([Content("system", (IMAGE,)), USER], "an? image cannot"),
        ([USER, Content("model", (IMAGE,)), USER], "image cannot be part"),
        ([Content("user", (Thought("x"),))], "thought cannot be part"),
        ([Content("document", (Text("x"),))], "roles system, user, model, tool"),
        ([USER, Content("model", (ToolCall("f{", {}),)), RESULT], "tool name"),
        ([USER, Content("model", (ToolCall("f", {"a": float("nan")}),)), RESULT], "no JSON value"),
    ],
)
def test_what_gemma_4_cannot_express_is_an_error(contents, message):
    with pytest.raises(ValueError, match=message):
        GEMMA4.prompt(contents)


@pytest.mark.parametrize(
    ("contents", "arguments", "message"),
    [
        ([USER], {"tools": [Tool("f")]}, "has no tools"),
        ([USER], {"thinking": True}, "has no thinking"),
        ([USER, Content("model", (Thought("x"),))], {}, "no thought"),
        ([USER, USER], {}, "alternation"),
        ([MODEL], {}, "alternation"),
        ([Content("system", (Text("x"),))], {}, "a system turn alone"),
    ],
)
def test_what_gemma_3_cannot_express_is_an_error(contents, arguments, message):
    with pytest.raises(ValueError, match=message):
        GEMMA3.prompt(contents, **arguments)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "string"}, "are an object"),
        ({"properties": {"a": {"anyOf": []}}}, r"tool f: parameters\.a\.type is None"),
        ({"properties": {"a": {"type": ["string", "integer"]}}}, "one type"),
        ({"properties": {"a": {"type": "array", "items": ["x"]}}}, "must be an object"),
        ({"properties": {"a": 1}}, "must be an object"),
    ],
)
def test_schemas_that_cannot_be_declared_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        GEMMA4.prompt([USER], [Tool("f", "", parameters)])


def test_types_with_null_are_nullable():
    text = GEMMA4.prompt([USER], [Tool("f", "", {"properties": {"a": {"type": ["null", "string"]}}})])
    assert 'a:{nullable:true,type:<|"|>STRING<|"|>}' in GEMMA4.tokenizer.decode(text.tokens.tolist())


# ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "encoder", [GEMMA3, GEMMA3N, GEMMA4, encoder_of("gemma4", config.UnifiedVision(8), config.UnifiedAudio())]
)
def test_an_encoder_is_stored_and_read_back(encoder, tmp_path):
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, GemmaEncoder)
    assert (loaded.settings, loaded.vision, loaded.audio) == (encoder.settings, encoder.vision, encoder.audio)
    assert loaded.prompt([USER]).tokens.tolist() == encoder.prompt([USER]).tokens.tolist()
    # A file that flags no control token as special is read as one that flags them all.
    more = tuple(name for name in CONTROLS[encoder.settings.format].values() if name not in BASE)
    (tmp_path / "tokenizer.json").write_bytes(small_tokenizer(more=more))
    named = user("".join(CONTROLS[encoder.settings.format].values()))
    assert load_encoder(tmp_path).prompt(named).tokens.tolist() == encoder.prompt(named).tokens.tolist()
    stored = json.loads((tmp_path / "prompt.json").read_text())
    for damage in (
        {"x": 1},
        {"settings": stored["settings"] | {"format": "gemma5"}},
        {"settings": stored["settings"] | {"controls": {}}},
    ):
        (tmp_path / "prompt.json").write_text(json.dumps(stored | damage))
        with pytest.raises(ValueError, match=r"prompt\.json"):
            load_encoder(tmp_path)


def test_a_folder_of_two_models_is_refused(tmp_path):
    GEMMA3.save(tmp_path)
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(ValueError, match="two models"):
        load_encoder(tmp_path)


def test_an_encoder_of_another_model_is_refused():
    decoder = config.Decoder(8, 1, 1, 8, 8)
    ids = GEMMA4.settings.controls
    c = config.Model(
        GEMMA4.tokenizer.size, ids["image"], ids["audio"], decoder, VIT, CONFORMER, video_token=ids["video"]
    )
    GEMMA4.check(c)
    for change in (
        {"image_token": 3},
        {"audio_token": 3},
        {"video_token": 3},
        {"vision": None},
        {"audio": None},
        {"vocabulary": 99},
    ):
        with pytest.raises(ValueError):
            GEMMA4.check(replace(c, **change))
    # The vocabulary of a model without media may end before the placeholders.
    text = config.Model(GEMMA3.tokenizer.size - 3, 0, 0, decoder, None, None)
    encoder = GemmaEncoder.create(GEMMA3.tokenizer, GEMMA3.settings, text)
    assert encoder.prompt([USER]).tokens.tolist() == GEMMA3.prompt([USER]).tokens.tolist()
    with pytest.raises(ValueError):
        GemmaEncoder.create(GEMMA3.tokenizer, GEMMA3.settings, replace(text, vocabulary=text.vocabulary - 1))


def test_settings_of_a_folder(tmp_path):
    tokenizer_of("gemma4").save(tmp_path / "tokenizer.json")
    template = "{{- '<|think|>\\n' -}} {{- '<|turn>model\\n' -}} {%- if not enable_thinking -%} {{- '<|channel>thought\\n<channel|>' -}}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    generation = {
        "eos_token_id": [1, 106 % 13, 9],
        "suppress_tokens": [5, 6],
        "top_k": 7,
        "top_p": 0.5,
        "do_sample": True,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 4096}}))
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {"max_soft_tokens": 560}, "video_processor": {"num_frames": 8}})
    )
    found, controls = PromptSettings.from_folder(tmp_path, "gemma4"), settings_of("gemma4").controls
    assert found.end_tokens == tuple(sorted({1, 2, 9, controls["turn_end"], controls["response"]}))
    assert (found.temperature, found.top_k, found.top_p, found.context) == (1.0, 7, 0.5, 4096)
    assert (found.budgets.image_tokens, found.budgets.frame_tokens, found.budgets.clip_frames) == (560, 70, 8)
    assert found.variants == Variants(empty_thought="turn") and found.controls == controls
    kinds = {
        "pad",
        "bos",
        *(f"{kind}{mark}" for kind in ("image", "audio") for mark in ("", "_start", "_end")),
        "video",
    }
    assert set(found.never_sampled) == {5, 6, *(controls[name] for name in kinds)}
    (tmp_path / "chat_template.jinja").write_text("x")
    assert read_template(tmp_path) == "x" and read_facts(tmp_path).image_tokens == 560
    for name, content, message in (
        ("generation_config.json", {"repetition_penalty": 1.1}, "repetition_penalty"),
        ("generation_config.json", {"top_k": "7"}, "top_k"),
        ("generation_config.json", {"eos_token_id": [-1]}, "eos_token_id"),
        ("processor_config.json", {"image_processor": {"max_soft_tokens": 100}}, "images of 100 tokens"),
        ("config.json", {"max_position_embeddings": "x"}, "context"),
    ):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            PromptSettings.from_folder(tmp_path, "gemma4")
        (tmp_path / name).write_text(kept)
    with pytest.raises(ValueError, match=r"<start_of_turn>.*prompt format needs"):
        PromptSettings.from_tokenizer(
            "gemma3", HfTokenizer.from_bytes(small_tokenizer().replace(b"<start_of_turn>", b"<start>"))
        )
