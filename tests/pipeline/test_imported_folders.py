"""Imported model folders in evaluate and compress: perplexity, answers with tool calls, 4 bits beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alhena.cli.build import Compress
from alhena.cli.measuring import Evaluate
from alhena.cli.weights import Check, Export
from alhena.content import Content, Document, Text, Thought, ToolCall
from alhena.documents import write_documents
from alhena.evaluate.answers import answer_questions
from alhena.evaluate.scoring import text_loss, window_tokens
from alhena.files import read_json
from alhena.serve.engine import Engine
from tests.serve.imported_models import Scripted, write_imported
from tests.serve.test_imported import script

QUESTION = Content("user", (Text("the"),))
CALL = ToolCall("see", {"y": 2, "x": "is"})
TOOLS = {"tools": [{"name": "see", "description": "See.", "parameters": {}}]}


def running(text: str, number: int) -> Document:
    return Document((Content("document", (Text(text),)),), f"t{number}", "book")


TEXTS = [running("the lambs is here. " * 8, 0), running("so it is. " * 60, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; beside it ``held_out``: two texts, one longer than a window of our own models, and two questions."""
    root = tmp_path_factory.mktemp("imported")
    model = write_imported("gemma3_text", root)
    answers = [(Text("the lambs"),), (Text("so"),)]
    questions = [Document((QUESTION, Content("model", parts)), f"q{i}", "ask") for i, parts in enumerate(answers)]
    declared = Document((QUESTION, Content("model", (CALL,))), "call", "ask", facts=TOOLS)
    write_documents(root / "held_out" / "part-00000.parquet", [*TEXTS, *questions, declared])
    return model


def test_running_text_and_answers_of_an_imported_model_are_measured(folder):
    data = folder.parents[1] / "held_out"
    Evaluate(folder, data=data)()
    results = read_json(folder.parents[1] / "held_out" / folder.name / "results.json")
    assert (results["questions"], results["texts"]) == (2, 2)
    assert 10 < results["perplexity"] < 1e4
    # Gemma 3 has no tools: a question with them is counted, not left out in silence.
    assert results["skipped"] == {"gemma3 has no tools; Gemma 4 has": 1}


def test_running_text_is_scored_in_windows_as_large_as_the_context_allows(folder):
    engine = Engine.load(folder)
    assert window_tokens(engine.encoder) == 1024
    settings = engine.encoder.settings
    assert window_tokens(replace(engine.encoder, settings=replace(settings, context=131_072))) == 2048
    together, alone = text_loss(engine, TEXTS), [text_loss(engine, [text]) for text in TEXTS]
    assert (together.size, together.tokens) == (sum(a.size for a in alone), sum(a.tokens for a in alone))
    assert together.nats == pytest.approx(alone[0].nats + alone[1].nats, rel=1e-5)
    # One window: each token of the text, and its end, once.
    assert alone[1].tokens == len(engine.encoder.tokenizer.encode("so it is. " * 60)) + 1 > 256


def test_a_model_folder_is_quantized_beside_it(folder, capsys):
    data, small = folder.parents[1] / "held_out", folder.parent / "small"
    with pytest.raises(ValueError, match=r"calibrated reads examples.*--examples"):
        Compress(folder, name="small")()
    Compress(folder, name="small", examples=data, data=data)()
    out = capsys.readouterr().out
    facts = read_json(folder.parents[1] / "compressed" / "small" / "stage.json")
    before, after = facts["measures"]["bits_per_byte"]
    assert 0 < abs(before - after) < 0.2 * before
    # Most of its matrices have fewer inputs than a group.
    assert facts["measures"]["bytes"][1] < facts["measures"]["bytes"][0]
    assert f"bits_per_byte: {before} → {after}" in out
    assert {*facts["losses"]} == {"float", "rounded", "calibrated"}
    # The embedding too.
    assert {row["type"] for row in facts["types"]} == {"int4", "float"}
    assert after == pytest.approx(text_loss(Engine.load(small), TEXTS).bits_per_byte, abs=1e-4)
    stamp = (small / "weights.safetensors").stat().st_mtime_ns
    Compress(folder, name="small", examples=data, data=data)()
    assert (small / "weights.safetensors").stat().st_mtime_ns == stamp
    Check(folder.parents[1])()
    # What an export writes beside the weights came along.
    Export(small, out=folder.parents[1] / "exported")()
    assert (folder.parents[1] / "exported" / "generation_config.json").exists()
    with pytest.raises(ValueError, match="quantized already"):
        Compress(small, name="smaller")()
    with pytest.raises(ValueError, match="a name of its own"):
        Compress(folder, name=folder.name)()
    with pytest.raises(ValueError, match="need --name"):
        Compress(folder, data=data)()


def test_calls_are_compared_and_thoughts_are_not(tmp_path):
    engine = Engine.load(write_imported("gemma4_small", tmp_path))
    answer = Scripted.of(engine, script(engine, Thought("is"), CALL, "response"))
    question = Document((QUESTION, Content("model", (Thought("so"), CALL))), "call", "ask", facts=TOOLS)
    answered = answer_questions({"open": answer}, [question]).questions[0]
    assert answered.reference == answered.answers["open"] == 'see{"x": "is", "y": 2}'
    other = Scripted.of(engine, script(engine, ToolCall("see", {"x": "so", "y": 2}), "response"))
    wrong = answer_questions({"open": other}, [question]).questions[0]
    assert wrong.answers["open"] == 'see{"x": "so", "y": 2}' != wrong.reference
