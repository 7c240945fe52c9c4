"""Benchmarks on a small model from the command line: results, intervals, resumption, contamination, comparison, the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alhena.cli.measuring import Compare, Evaluate
from alhena.content import Content, Document, Text
from alhena.documents import write_documents
from alhena.evaluate.benchmarks.contamination import held_items
from alhena.evaluate.comparison import compare
from alhena.evaluate.tasks.items import Item
from alhena.files import read_json, read_lines, write_json
from tests.evaluate.benchmark_files import LAYOUTS
from tests.serve.imported_models import write_imported


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("gsm8k", "mmlu", "humaneval"):
        LAYOUTS[name][0](folder / name)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_imported("gemma3_text", tmp_path_factory.mktemp("run"))


def test_benchmarks_of_a_model_folder(model, data, tmp_path, capsys):
    """Routed chain of thought, choices, and programs; the second time nothing is asked, with another seed everything is."""
    corpus = tmp_path / "corpus"
    question = read_lines(data / "gsm8k" / "test.jsonl")[0]["question"]
    contents = Content("user", (Text(question),)), Content("model", (Text("She has 4+4=8."),))
    write_documents(corpus / "part.parquet", [Document(contents, "1", "web"), Document(contents[:1], "2", "web")])
    write_json(corpus / "report.json", {"dropped": {"overlaps an evaluation set": {"web": 4}}})
    command = Evaluate(
        model,
        data=data,
        tasks="gsm8k",
        protocol="routed",
        shots=1,
        samples=2,
        max_tokens=8,
        limit=2,
        out=tmp_path / "a",
        text=True,
        corpus=corpus,
    )
    command()
    result = read_json(tmp_path / "a" / "gsm8k.json")
    assert (result["items"], result["items_of_test_split"], result["validation_items"]) == (2, 3, 2)
    assert result["interval"][0] <= result["score"] <= result["interval"][1]
    assert [row["k"] for row in result["by_k"]] == [1, 2]
    assert result["reported"] == {"ultra": 94.4, "pro": 86.5, "protocol": "Maj1@32"}
    assert (tmp_path / "a" / "gsm8k.png").read_bytes().startswith(b"\x89PNG")
    lines = read_lines(tmp_path / "a" / "gsm8k.jsonl", id=str, score=float, held=bool)
    held = [line["held"] for line in lines]
    assert result["contamination"] == {
        "corpus_documents": 2, "removed_from_corpus": 4, "items_held": sum(held), "score_with": result["score"],
        "score_without": result["score"],
    }  # fmt: skip
    capsys.readouterr()
    command()
    assert "measured before, skipped" in capsys.readouterr().out
    Evaluate(model, data=data, tasks="mmlu,humaneval", shots=0, limit=2, max_tokens=8, out=tmp_path / "a", text=True)()
    printed = capsys.readouterr().out
    assert "83.7" in printed and "74.4" in printed
    result = read_json(tmp_path / "a" / "mmlu.json")
    assert result["chance"] == 25
    assert set(result["score_by_normalization"]) == {"none", "tokens", "bytes"}
    Compare(tmp_path / "a", tmp_path / "a", tmp_path / "compared.json")()
    assert "Beyond chance at 5%, corrected for 3 tasks: nothing" in capsys.readouterr().out
    assert {row["p"] for row in read_json(tmp_path / "compared.json")} == {1.0}


def test_mistakes_on_the_command_line(model, data, tmp_path):
    for command, message in (
        (Evaluate(model, tasks="gsm8k"), "--tasks needs --data"),
        (Evaluate(model, data=data, tasks="gsm8"), "did you mean gsm8k"),
        (Evaluate(model, data=data, tasks="math", out=tmp_path), "no such folder; --data names a folder with one for each"),
        (Evaluate(model, data=data, tasks="gsm8k", limit=0), "at least one item"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            command()


def write_result(folder: Path, scores: list[float], name: str = "gsm8k", binary: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    score = 100 * float(np.mean(scores))
    settings = {
        "task": name, "family": "text", "metric": "accuracy", "binary": binary, "corpus_metric": None, "items": len(scores),
        "protocol": {"kind": "cot", "shots": 8, "samples": 8}, "score": score, "interval": [score, score], "chance": 0.0,
        "truncated": 0, "reported": {}, "model": "m",
    }  # fmt: skip
    write_json(folder / f"{name}.json", settings)
    rows = [{"id": str(i), "score": score, "answer": "7", "reference": "8"} for i, score in enumerate(scores)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_comparison_finds_what_differs_and_corrects_for_many_tasks(tmp_path, capsys):
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.5).astype(float)
    better = np.maximum(base, rng.random(200) < 0.2)
    for n in range(6):
        write_result(tmp_path / "a", base.tolist(), f"task{n}", binary=n != 4)
        write_result(tmp_path / "b", (better if n == 3 else rng.permutation(base)).tolist(), f"task{n}", binary=n != 4)
    compared = compare(tmp_path / "a", tmp_path / "b")
    assert [c.task for c in compared if c.differs] == ["task3"]
    assert [c.test for c in compared][3:5] == ["McNemar", "paired bootstrap"]
    assert compared[3].interval[0] > 0
    Compare(tmp_path / "a", tmp_path / "b")()
    assert "task3" in capsys.readouterr().out.splitlines()[-1]
    single = compare(tmp_path / "a" / "task3.json", tmp_path / "b" / "task3.json")
    assert single[0].p < compared[3].p


def test_translations_are_compared_by_the_metric_of_the_corpus(tmp_path):
    references = [f"Das Haus Nummer {n} ist rot und steht am Fluss." for n in range(30)]
    for name, answers in {
        "a": [r.replace("rot", "blau").replace("Fluss", "See") for r in references],
        "b": references,
    }.items():
        write_result(tmp_path / name, [0.5] * 30, "wmt", binary=False)
        result = read_json(tmp_path / name / "wmt.json") | {"corpus_metric": "chrF"}
        write_json(tmp_path / name / "wmt.json", result)
        rows = [
            {"id": str(i), "score": 0.5, "answer": a, "reference": r}
            for i, (a, r) in enumerate(zip(answers, references, strict=True))
        ]
        (tmp_path / name / "wmt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (compared,) = compare(tmp_path / "a", tmp_path / "b")
    assert compared.b == 100 > compared.a
    assert compared.differs


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    write_result(tmp_path / "a", [1.0, 0.0])
    write_result(tmp_path / "b", [1.0], "mmlu")
    with pytest.raises(ValueError, match="no task in common"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="no results"):
        compare(tmp_path, tmp_path / "b")
    write_result(tmp_path / "c", [1.0, 0.0])
    (tmp_path / "c" / "gsm8k.jsonl").write_text('{"id": "0", "score": 1.0, "answer": "7", "reference": "other"}\n')
    with pytest.raises(ValueError, match="measured on other data"):
        compare(tmp_path / "a", tmp_path / "c")


def test_items_that_a_corpus_holds_are_found_whole_in_part_and_as_question_with_answer():
    long = " ".join(f"word{n}" for n in range(20))
    template = "Read the following text with care and answer the question that comes after it:"
    items = [Item(str(n), f"{template} {n}?", (str(n),)) for n in range(5)]
    items += [
        Item("long", long, ("yes",)),
        Item("short", "Who wrote it?", ("Ann",), solution=""),
        Item("unseen", f"other {long[::-1]}", ("no",)),
    ]

    def document(*texts: str) -> Document:
        roles = ("document",) if len(texts) == 1 else ("user", "model")
        return Document(tuple(Content(r, (Text(t),)) for r, t in zip(roles, texts, strict=True)), "d", "web")  # type: ignore[arg-type]

    corpus = [
        document(f"Before. {long} After."),
        document("who wrote it", "Ann"),
        document("Who wrote it?", "Ben"),
        document(template * 2),
    ]
    assert held_items(items, corpus) == {"long", "short"}
    assert held_items(items, corpus[2:]) == frozenset()
    assert held_items([replace(items[5], facts={"passage": long}, question="?")], corpus) == {"long"}
