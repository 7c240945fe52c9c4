"""The report card: results of several models side by side, differences beyond chance, examples, history, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from alhena.cli.measuring import Report
from alhena.content import Audio, Content, Document, Image, Text, Video
from alhena.evaluate.card.card import make_card
from alhena.evaluate.card.examples import MAX_URL, PER_KIND, chosen, example_lines, pieces_of, read_examples, short
from alhena.evaluate.card.history import HISTORY, add_to_history, read_history, section_score, series
from alhena.evaluate.card.page import page, quality
from alhena.evaluate.card.write import read_sources, split_label, write_card
from alhena.evaluate.evaluation import answer_row
from alhena.evaluate.measure import Measure, Scored
from alhena.evaluate.results import SECTIONS, AnsweredQuestion, AnswerSet, Evaluation, ReportRow
from alhena.evaluate.tasks.catalog import BENCHMARKS
from alhena.evaluate.tasks.starter import TASK_METRICS
from alhena.files import read_json, write_atomically, write_json
from alhena.media import decode_image, encode_audio, encode_png, encode_video
from tests.conftest import random_audio, random_image
from tests.serve.chromium import browser
from tests.serve.opened_page import in_chromium

SCRIPT = "<script>alert(1)</script>"


def write_task(folder: Path, model: str, scores: list[float], name: str = "gsm8k", **more: object) -> None:
    """TASK.json, TASK.jsonl and TASK.examples.jsonl as a benchmark writes them."""
    score = 100 * float(np.mean(scores))
    facts = {
        "task": name, "family": "mathematics", "metric": "accuracy", "binary": True, "corpus_metric": None, "items": len(scores),
        "protocol": {"kind": "cot", "shots": 8, "samples": 8}, "score": score, "interval": [score - 5, score + 5], "chance": 2.0,
        "truncated": 0, "reported": {"ultra": 94.4, "pro": 86.5, "protocol": "Maj1@32"}, "model": model, "not_asked": {},
    }  # fmt: skip
    write_json(folder / f"{name}.json", facts | more)
    rows = [{"id": str(n), "score": s, "answer": "7", "reference": "8"} for n, s in enumerate(scores)]
    write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    example = {
        "id": "0", "rows": [f"mathematics/{name}/accuracy"], "reference": "8",
        "prompt": [{"kind": "text", "text": SCRIPT, "url": "", "peaks": []}], "answers": {model: {"text": SCRIPT, "url": ""}},
    }  # fmt: skip
    write_atomically(folder / f"{name}.examples.jsonl", json.dumps(example) + "\n")


def write_run(run: Path, wrong: int = 5) -> None:
    """A run: an evaluation of two models on forty questions, a benchmark, and a map by length and depth."""
    task = next(task for task in TASK_METRICS if task.name == "scene: shape")
    questions = []
    for n in range(40):
        prompt = Content("user", (random_image(n, 16, 16), Text(f"What shape is it? {SCRIPT}")))
        document = Document(
            (prompt, Content("model", (Text("star"),))), f"q{n}", "scenes", facts={"task": "scenes/shape"}
        )
        answers = {"assistant": "star", "nano": "heart" if n < wrong else "star"}
        questions.append(AnsweredQuestion(document, "star", answers, {}, frozenset(["nano"] if n == 0 else [])))
    row = answer_row(task, questions)
    assert row is not None
    evaluation = Evaluation([row], AnswerSet(questions, {"it is too long": 2}))
    out, models = run / "report", [{"name": "assistant", "parameters": 2_000_000}, {"name": "nano", "form": "4 bits"}]
    write_json(out / "results.json", {"models": models, "rows": [row.to_json()], "skipped": {"it is too long": 2}})
    write_atomically(out / "answers.jsonl", evaluation.to_json_lines())
    write_atomically(out / "examples.jsonl", example_lines(evaluation))
    add_to_history(run, [row])
    write_task(run / "benchmarks" / "assistant", "assistant", [1.0, 0.0] * 50)
    cells = {"lengths": [256, 512], "depths": [0.0, 0.5, 1.0], "accuracy": [[100, 98, 97], [60, 50, 40]], "items": 600}
    write_json(run / "retrieval_32k.json", cells)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_run(folder, wrong=14)
    return folder


def test_a_card_of_a_run_and_a_result_elsewhere(run, tmp_path, capsys):
    """Rows of the evaluation and the benchmark come together; both files of the report's figures and all forms are written."""
    write_task(tmp_path / "other", "270m", [1.0] * 80 + [0.0] * 20)
    Report((str(run), f"gemma={tmp_path / 'other'}"), tmp_path / "card")()
    assert "2 rows, 3 models" in capsys.readouterr().out
    card = read_json(tmp_path / "card" / "report.json")
    assert [model["name"] for model in card["models"]] == ["assistant", "nano", "gemma"]
    gsm8k, shape = card["rows"]
    assert (gsm8k["section"], gsm8k["scores"]) == ("mathematics", {"assistant": 50.0, "gemma": 80.0})
    assert gsm8k["verdicts"]["gemma"]["differs"] and gsm8k["verdicts"]["gemma"]["better"]
    assert (shape["section"], shape["scores"]) == ("image", {"assistant": 100.0, "nano": 65.0})
    assert shape["verdicts"]["nano"]["differs"] and not shape["verdicts"]["nano"]["better"]
    assert shape["truncated"] == {"assistant": 0, "nano": 1}
    assert card["notes"] == ["not measured: 2 × it is too long"]
    text = (tmp_path / "card" / "report.md").read_text()
    assert (
        "| gsm8k (cot, 8-shot) | accuracy | 100 | 2.0 | 50.0 [45.0, 55.0] | 80.0 [75.0, 85.0] ▲ | 94.4 | 86.5 |" in text
    )
    assert "| 512 | 60 [56, 64] | 50 [46, 54] | 40 [36, 44] |" in text
    assert decode_image((tmp_path / "card" / "report.png").read_bytes()).shape[1] > 1000
    html = (tmp_path / "card" / "report.html").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "http" not in html
    for expected in ('class="heat"', "94.4", "▼", "▲", "data:image/png;base64,", "✂ 1"):
        assert expected in html, expected


def test_small_differences_are_not_marked(tmp_path):
    write_run(tmp_path / "run", wrong=1)
    (row,) = make_card(read_sources([tmp_path / "run" / "report"])).rows
    assert not row.verdicts["nano"].differs
    assert row.verdicts["nano"].p == 1


def test_models_of_the_same_name_are_told_apart(run, tmp_path):
    other = tmp_path / "yours"
    write_run(other)
    assert list(make_card(read_sources([run, other])).models) == [
        "assistant (mine)", "nano (mine)", "assistant (yours)", "nano (yours)",
    ]  # fmt: skip
    named = make_card(read_sources([f"a={run}", f"b={other / 'benchmarks' / 'assistant'}"]))
    assert list(named.models) == ["a assistant", "a nano", "b"]
    assert split_label("a=b") == ("a", Path("b"))


def test_chosen_examples_are_right_and_wrong():
    scored = [[Scored(str(n), float(n % 4 != 0)) for n in range(40)], [Scored(str(n), 1.0) for n in range(40)]]
    ids = chosen(scored)
    assert [int(id) % 4 == 0 for id in ids] == [False] * PER_KIND + [True] * PER_KIND
    assert chosen([[Scored("a", 0.0), Scored("b", 0.3)]], lower_is_better=True) == ["a", "b"]
    assert chosen([]) == []


def test_media_of_examples_are_small_and_what_is_no_medium_is_named():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1400, 3)).astype(np.uint8)
    (image,) = pieces_of(Image(encode_png(noise)))
    assert decode_image(_bytes(image.url)).shape[1] == 256
    (audio,) = pieces_of(random_audio(0, 30.0))
    assert len(audio.url) < MAX_URL and len(audio.peaks) == 96 and max(audio.peaks) == 1
    (video,) = pieces_of(Video(encode_video([noise[:120, :160]] * 12, 6)))
    assert decode_image(_bytes(video.url)).shape == (72, 576, 3)
    assert pieces_of(Image(b"nothing"))[0].text.startswith("(image:")
    assert pieces_of(Audio(encode_audio(np.zeros(0, np.float32))))[0].kind in ("text", "audio")
    assert short("a" * 5000 + "?").endswith("?") and len(short("a" * 5000)) < 1300


def _bytes(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])


@pytest.mark.parametrize("url", ["http://a/b.png", "data:text/html;base64,aaaa", 'data:image/png;base64,a"onload="x'])
def test_examples_hold_nothing_but_small_media(url, tmp_path):
    path = tmp_path / "examples.jsonl"
    line = {"id": "0", "rows": [], "prompt": [{"kind": "image", "url": url}], "reference": "", "answers": {}}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"line 1.*no data URL"):
        read_examples(path)


def row(name: str, score: float, lower: bool = False, chance: float = 20.0, model: str = "m") -> ReportRow:
    return ReportRow("image", name, "accuracy %", lower, 10, chance, {model: score}, {model: (score - 1, score + 1)})


def test_a_section_runs_from_chance_to_the_best():
    assert section_score([row("a", 60), row("b", 100)], "m") == pytest.approx(75)
    assert section_score([row("a", 10, lower=True, chance=50)], "m") == pytest.approx(80)
    assert section_score([row("a", 20)], "m") == 0
    assert section_score([], "m") is None
    assert quality(row("a", 10, lower=True), 10) == 90
    assert quality(ReportRow("text", "t", "bits per byte", True, 1, 5.0, {"m": 2.0}), 2.0) == 75


def test_history_joins_evaluations_of_the_same_rows(tmp_path):
    """A row that came later ends the line before it; a benchmark beside the evaluation does not."""
    records = [("1", [row("a", 60)]), ("2", [row("a", 68), row("b", 60)]), ("3", [row("a", 100), row("b", 60)])]
    (one,) = series(records)
    assert [(p.time, p.score) for p in one.points] == [("2", 55.0), ("3", 75.0)]
    assert one.rows == 2
    (both,) = series([*records[1:], ("4", [row("b", 100)])])
    assert [p.score for p in both.points] == [55.0, 75.0, 100.0]
    for _, rows in records:
        add_to_history(tmp_path, rows)
    found = read_history(tmp_path)
    assert [rows for _, rows in found] == [
        [ReportRow(**{**r.__dict__, "intervals": {}}) for r in rows] for _, rows in records
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", time) for time, _ in found)
    with pytest.raises(ValueError, match=HISTORY):
        (tmp_path / HISTORY).write_text('{"time": "1", "rows": [{"section": "image"}]}\n')
        read_history(tmp_path)


def test_routed_chain_of_thought_and_history_are_drawn(run, tmp_path):
    by_k = [{"k": k, "threshold": 0.5, "greedy": 40, "majority": 45, "routed": 50} for k in (1, 2, 4)]
    write_task(tmp_path / "a", "m", [1.0] * 10, by_k=by_k)
    task = [row("gsm8k", 60, model="m"), row("gsm8k", 70, model="m")]
    for one in task:
        add_to_history(tmp_path / "a", [one])
    html = page(make_card(read_sources([tmp_path / "a"])))
    assert html.count("k = ") == 3 and "τ = 0.50" in html
    assert "<polyline" in html


def test_a_heat_map_of_a_known_model_is_a_row_too(tmp_path):
    cells = {"lengths": [256, 1024], "depths": [0.5], "accuracy": [[100], [90]], "items": 50, "mean": 95.0}
    write_json(tmp_path / "run" / "context" / "nano" / "retrieval.json", cells | {"model": "nano", "chance": 10.0})
    card = make_card(read_sources([tmp_path / "run"]))
    (row,) = card.rows
    assert (row.row.section, row.row.scores, row.row.items) == ("long context", {"nano": 95.0}, 100)
    assert row.row.intervals["nano"][0] < 95 < row.row.intervals["nano"][1]
    assert row.row.name == "key-value retrieval, 256 to 1,024 tokens"
    assert page(card).count('class="heat"') == 1


def test_what_is_no_result_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "other.json", {"a": 1})
    heat = {"lengths": [1, 2], "depths": [0.5], "accuracy": [[1.0]], "items": 3}
    write_json(tmp_path / "retrieval.json", heat)
    write_json(tmp_path / "old" / "results.json", {"models": [], "rows": [{"group": "text"}]})
    for path, message in (
        ("nowhere", "no such file or folder"), ("empty", "no results here"), ("other.json", "neither results.json"),
        ("retrieval.json", "a row for each of 2 lengths"), ("old", "rows.0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_card([tmp_path / path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_benchmark_has_a_section():
    assert {task.family for task in BENCHMARKS.values()} <= set(SECTIONS)
    assert {task.section for task in TASK_METRICS} <= set(SECTIONS)


def test_measures_say_what_is_best():
    assert (Measure("accuracy").best, Measure("word error rate %", True).best) == (100, 0)


@in_chromium
def test_the_page_fits_a_phone_and_loads_nothing(run, tmp_path):
    write_card([run], tmp_path / "card")
    with browser(tmp_path / "profile") as tab:
        tab.emulate(390, 800)
        tab.open(f"file://{tmp_path / 'card' / 'report.html'}")
        assert tab.run("document.documentElement.scrollWidth") == 390
        tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        tab.wait("[...document.images].every((image) => image.complete && image.naturalWidth)")
        assert not tab.errors
        assert all(url.startswith(("file:", "data:")) for url in tab.requested)
