"""Benchmarks without a model: every public layout is read, gold answers score 100 %, corrupted ones 0, constants their chance level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alhena.content import Text
from alhena.evaluate.benchmarks.benchmark_run import Options, chance_level, measure_of, read_task, scored
from alhena.evaluate.benchmarks.protocols import Asked, outcome_of
from alhena.evaluate.measure import interval_of, score_of
from alhena.evaluate.results import SECTIONS
from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.catalog import BENCHMARKS, tasks_named
from alhena.evaluate.tasks.extraction import boxed, letter, number
from alhena.evaluate.tasks.items import MARK, Form, Item, Task, loaded
from tests.evaluate.benchmark_files import LAYOUTS as TEXT_LAYOUTS
from tests.evaluate.media_benchmark_files import MEDIA_LAYOUTS

LAYOUTS = TEXT_LAYOUTS | MEDIA_LAYOUTS
CASES = [(name, write) for name, writers in LAYOUTS.items() for write in writers]
# Answers that follow the instructions of the two items of IFEval.
FOLLOWED = {"ifeval-1": "Hello there", "ifeval-2": '```json\n{"a": 1}\n```'}


@pytest.fixture(params=CASES, ids=lambda case: case[1].__name__)
def read(request, tmp_path) -> tuple[Task, Asked, Asked]:
    """A benchmark read from files of one layout: what is asked of test, and with another protocol of validation."""
    name, write = request.param
    write(tmp_path / name)
    task = BENCHMARKS[name]
    shots = min(task.shots, len(list(task.read(tmp_path / name, "shots"))))
    test, validation, total = read_task(
        task, tmp_path / name, Options("routed" if task.reasoned else None, shots=shots)
    )
    assert total == len(test.items) > 0
    assert len({item.id for item in test.items}) == total
    return task, test, validation


def gold(form: Form, item: Item) -> str:
    """What a model that knows the answer would write."""
    if item.id in FOLLOWED:
        return FOLLOWED[item.id]
    return form.answer(item) if form.answer(item).strip() else f" The answer is {item.reference}."


def score(task: Task, form: Form, answers: Callable[[Item], str], test: Asked) -> float:
    outcomes = [outcome_of(task, item, form.extract(item, answers(item))) for item in test.items]
    measure = measure_of(task.metric)
    value, interval = score_of(measure, scored(outcomes)), interval_of(measure, scored(outcomes))
    assert interval is None or interval[0] - 1e-9 <= value <= interval[1] + 1e-9
    return value


def test_every_benchmark_is_tested():
    assert LAYOUTS.keys() == BENCHMARKS.keys()
    assert {task.family for task in BENCHMARKS.values()} <= set(SECTIONS)


# Best and worst scores of metrics that are no shares, in percent; that of CIDEr where there is one caption of each image.
BEST = {"word error rate": 0}
WORST = {"chrF": 12, "BLEU": 12, "ROUGE-L": 12}


def test_gold_answers_score_100_and_corrupted_ones_0(read):
    task, test, _ = read
    if task.direct.judge:
        return
    for form in filter(None, (task.direct, task.reasoned)):
        best = score(task, form, lambda item, form=form: gold(form, item), test)
        assert best >= 100 if task.metric.name == "CIDEr" else best == pytest.approx(BEST.get(task.metric.name, 100))
        for wrong in ("", "qqq zzz, 77777", "I do not know."):
            if task.name == "ifeval":
                continue
            value = score(task, form, lambda item, wrong=wrong: wrong, test)
            assert value >= 80 if task.metric.lower_is_better else value <= WORST.get(task.metric.name, 0), (
                form,
                wrong,
            )


def test_prompts_hold_shots_with_answers_and_end_where_the_model_continues(read):
    """Media stand at their marks, or before the question they belong to."""
    task, test, validation = read
    count = min(task.shots, len(test.shots))
    for form in filter(None, (task.direct, task.reasoned)):
        for item in [*test.items, *validation.items]:
            others = [shot for shot in test.shots if not shot.is_same(item)]
            others = [s for s in others if s.group in ("", item.group)] if task.shots_of_group else others
            shots = loaded(test.shots_of(item, min(count, len(others))))
            (with_media,) = loaded([item])
            prompt = form.prompt(with_media, shots)
            written = "".join(part.text for part in prompt if isinstance(part, Text))
            assert written.endswith(form.ask(item).replace(MARK, ""))
            assert [p for p in prompt if not isinstance(p, Text)] == [m for i in (*shots, with_media) for m in i.media]
            for shot in shots:
                assert (form.ask(shot) + form.answer(shot)).replace(MARK, "") in written
                if task.metric.name != "CIDEr":
                    assert task.metric.score(shot, form.extract(shot, form.answer(shot))) == (
                        not task.metric.lower_is_better
                    )


def test_constants_score_the_chance_level(read):
    task, test, _ = read
    if task.chance is None and task.metric.binary and not task.direct.judge:
        best = max(
            score(task, task.direct, lambda item, constant=constant: gold(task.direct, constant), test)
            for constant in test.items
        )
        assert best <= chance_level(task, test.items, "greedy") + 1e-6 or all(item.choices for item in test.items)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_that_are_not_there_are_named(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="none of the files of this benchmark is here"):
        read_task(BENCHMARKS[name], tmp_path / name, Options(shots=0))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gsm8k", "test.jsonl", '{"question": "x", "answer": "7"}\n', "record 0: field 'answer' has no ####"),
        ("gsm8k", "test.jsonl", '{"question": 5, "answer": "#### 7"}\n', "field 'question' is 5; it must be a text"),
        ("gsm8k", "test.jsonl", "{nothing\n", "test.jsonl, line 1: not valid JSON"),
        ("gsm8k", "test.jsonl", "[1]\n", "record 0: it is .1., not an object"),
        ("mmlu", "test/a_test.csv", "what?,a,b,c,d,E\n", "field 'answer' names none of 4 choices"),
        ("mmlu", "test/a_test.csv", "what?,a,b\n", "a row has other columns"),
        ("hellaswag", "hellaswag_val.jsonl", '{"ctx": "a", "endings": ["b"], "label": 3}', "names none of 1 endings"),
        ("humaneval", "HumanEval.jsonl", '{"entry_point": "os.x"}', "field 'entry_point' must be a name"),
        ("humaneval", "HumanEval.jsonl.gz", "not gzip", "cannot be read"),
        ("drop", "drop_dataset_dev.json", "[1]", "not the layout of DROP"),
        ("ifeval", "input_data.jsonl", '{"key": 1, "prompt": "x", "instruction_id_list": ["new:one"], "kwargs": [{}]}', "unknown instruction 'new:one'"),
        ("wmt", "a.en-de.src", "one\ntwo", "no such file"),
        ("flores", "devtest/deu_Latn.devtest", "a", "eng_Latn.devtest is not here"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name, file, content, message, tmp_path):
    path = tmp_path / name / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_task(BENCHMARKS[name], tmp_path / name, Options(shots=0))


def test_unknown_benchmarks_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean gsm8k"):
        tasks_named(["gsm8"])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (" Natalia sold 48/2 = 24 clips in May, 72 altogether. The answer is 72.", "72"),
        ("**Step 1:** 3 × 4 = 12\n\n**Final Answer:** $12.50 per day", "25/2"),
        ("Therefore $\\boxed{1{,}234}$ apples.", "1234"),
        ("\\[ \\boxed{\\$18} \\]", "18"),
        ("6 eggs\n#### 1,080\nQ: next 5", "1080"),
        ("Die Antwort ist 42.", "42"),
        ("La respuesta es 7.", "7"),
        ("答案是 15。", "15"),
        ("答えは１２です。", "12"),
        ("উত্তর হল ৭২", "72"),
        ("The total is -3", "-3"),
        ("So 5 + 5 = 10", "10"),
        ("The answer is five.", ""),
        ("", ""),
    ],
)
def test_numbers_in_outputs_of_several_styles(output, expected):
    assert number(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", "B"), ("(C)", "C"), (" B. blue", "B"), ("**Answer: C**", "C"), ("Answer: **(A) red**", "A"),
        ("Let's see. A red thing is … so the answer is (B).", "B"), ("The correct answer is:\n\n(C) green", "C"),
        ("I would say (A), no: (C)", "C"), ("It must be green, I think.", "C"), ("$\\boxed{B}$", "B"),
        ("A cat sat there.", ""), ("D", ""), ("red or blue", ""), ("", ""),
    ],
)  # fmt: skip
def test_letters_in_outputs_of_several_styles(output, expected):
    assert letter(output, ("red", "blue", "green")) == expected


def test_programs_in_outputs_of_several_styles(tmp_path):
    """A completion, one with other code after it, a complete function in a block with and without words around it."""
    LAYOUTS["humaneval"][0](tmp_path)
    task = BENCHMARKS["humaneval"]
    (item,) = task.read(tmp_path, "test")
    body, function = "    return math.floor(a) + b", "def add(a, b):\n    return math.floor(a) + b"
    good = (body, f"{body}\n\n\ndef other(:\n", f"{body}\n\nprint(add(1, 2))\nassert 1 == 2", f"```python\n{function}\n```", f"Sure!\n```\n{function}\n```\nIt adds.", function, body.strip())  # fmt: skip
    for output in good:
        assert task.metric.score(item, task.direct.extract(item, output)) == 1, output
    for output in ("    return a - b", "", "```python\ndef add(a, b):\n    pass\n```"):
        assert task.metric.score(item, task.direct.extract(item, output)) == 0, output


def test_expressions_are_equal_but_for_notation():
    equal = [
        (r"\frac{1}{2}", "0.5"), (r"\dfrac{3}{4}", r"\frac34"), ("1,250", "1250"), (r"x=5", "5"), (r"90^\circ", "90"),
        (r"\left(1, 2\right)", "(1,2)"), (r"\$12", "12"), (r"50\%", "50"), (r"3\text{ cm}", "3cm"), (r"-\frac{6}{8}", r"-\frac{3}{4}"),
        (r"\sqrt2", r"\sqrt{2}"),
    ]  # fmt: skip
    for a, b in equal:
        assert scores.same_expression(Item("", "", (a,)), b) == 1, (a, b)
    for a, b in (("1", "2"), ("(1,2)", "(2,1)"), (r"\sqrt{2}", "2"), ("12", "1,2"), ("5", "")):
        assert scores.same_expression(Item("", "", (a,)), b) == 0, (a, b)
    assert boxed(r"\boxed{\frac{1}{\sqrt{2}}} and no \boxed{open") == ""


def test_overlap_scores_of_spans():
    item = Item("", "", ("Ann, Ben",), facts={"spans": (("Ann", "Ben"), ("3",))})
    answers = {"Ben and Ann": 1, "Ann": 0.5, "3": 1, "3 goals": 0.67, "4": 0, "": 0}
    assert {answer: scores.drop_f1(item, answer) for answer in answers} == answers
    squad = Item("", "", ("the red house", "house"))
    assert scores.squad_f1(squad, "A house!") == 1
    assert scores.squad_f1(squad, "red") == pytest.approx(2 / 3)
    assert scores.squad_f1(Item("", "", ("红色",)), "红") == pytest.approx(2 / 3)


def real(name: str) -> Path | None:
    """A benchmark of the real data that is not part of this project, where it is at hand."""
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "eval" / name
    return folder if folder.exists() else None


@pytest.mark.parametrize(("name", "items"), [("gsm8k", 1319), ("mgsm", 2750), ("bbh", 6511)])
def test_gold_answers_of_the_real_files_score_100(name, items):
    folder = real(name)
    if folder is None:
        return
    task = BENCHMARKS[name]
    test, _, total = read_task(task, folder, Options())
    assert total == items
    for item in test.items:
        assert task.metric.score(item, task.direct.extract(item, f" The answer is {item.reference}.")) == 1, item.id
