"""Small files in the public layouts of the benchmarks, with made-up contents; for each layout of a benchmark a function that writes it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[Mapping[str, Any]]


def jsonl(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def parquet(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def shard(split: str) -> str:
    return f"{split}-00000-of-00001.parquet"


# ── mathematics ────────────────────────────────────────────────────────────────────────────────────────────

WORD_PROBLEMS = [
    {"question": f"Ann has {n} pens and buys {n}. How many?", "answer": f"She has {n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"}
    for n in (4, 700, 12, 5, 6, 7, 8, 9, 10, 11, 13, 14)
]  # fmt: skip
EXPRESSIONS = [
    {"problem": "Halve one.", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{\frac{1}{2}}$."},
    {"problem": "Solve $x+1=3$.", "level": "Level 2", "type": "Algebra", "solution": r"So $x=\boxed{2}$."},
    {"problem": "Name the point.", "level": "Level 2", "type": "Algebra", "solution": r"It is $\boxed{(1,\sqrt{2})}$."},
    {"problem": "Add.", "level": "Level 2", "type": "Algebra", "solution": r"The sum is $\boxed{1{,}250}$."},
    {"problem": "Divide.", "level": "Level 2", "type": "Algebra", "solution": r"It is $\boxed{-\frac{3}{4}}$ in all."},
]


def gsm8k(folder: Path) -> None:
    jsonl(folder / "test.jsonl", WORD_PROBLEMS[:3])
    jsonl(folder / "train.jsonl", WORD_PROBLEMS)


def reasoning(folder: Path) -> None:
    rows = [
        {"question": "5+3-2", "worked": "5+3=8 8-2=6 answer 6", "answer": 6, "steps": 2},
        {"question": "Ann has 9 pens, sells 4. How many?", "worked": "9-4=5 answer 5", "answer": 5, "steps": 1},
    ]
    jsonl(folder / "test.jsonl", rows)
    jsonl(folder / "validation.jsonl", rows[1:])


def gsm8k_hub(folder: Path) -> None:
    parquet(folder / "main" / shard("test"), WORD_PROBLEMS[:3])
    parquet(folder / "main" / shard("train"), WORD_PROBLEMS)


def math(folder: Path) -> None:
    for split in ("train", "test"):
        for n, problem in enumerate(EXPRESSIONS):
            text(folder / split / "algebra" / f"{n}.json", json.dumps(problem))


def math_hub(folder: Path) -> None:
    for split in ("train", "test"):
        parquet(folder / "algebra" / shard(split), EXPRESSIONS)


def mgsm(folder: Path) -> None:
    gsm8k(folder.parent / "gsm8k")
    text(folder / "mgsm_de.tsv", 'Ann hat 2 "Hefte". Wie viele?\t2\nUnd 1.200?\t1200\n')
    text(folder / "mgsm_bn.tsv", "কত?\t12\n")


def mgsm_hub(folder: Path) -> None:
    test = [{"question": "Wie viele?", "answer": None, "answer_number": 7, "equation_solution": None}]
    train = [
        {"question": f"Frage: Wie viele? {n}", "answer": "Schritt-für-Schritt-Antwort: Es sind 3.", "answer_number": 3}
        for n in range(8)
    ]
    parquet(folder / "de" / shard("test"), test)
    parquet(folder / "de" / shard("train"), train)


# ── choices ────────────────────────────────────────────────────────────────────────────────────────────────


def mmlu(folder: Path) -> None:
    for split, count in (("test", 4), ("val", 3), ("dev", 5)):
        rows = "".join(
            f'"What is {split} {n}, or ""n""?",red,"blue, dark",green,{n},{"ABCD"[n % 4]}\n' for n in range(count)
        )
        text(folder / split / f"high_school_art_{split}.csv", rows)


def mmlu_hub(folder: Path) -> None:
    for split, count in (("test", 4), ("validation", 3), ("dev", 5)):
        rows = [
            {"question": f"What is {split} {n}?", "subject": "art", "choices": ["a", "b", "c", "d"], "answer": n % 4}
            for n in range(count)
        ]
        parquet(folder / "all" / shard(split), rows)


def _hellaswag_rows(count: int) -> list[dict[str, Any]]:
    endings = ["jumps.", "[step] sits down.", "flies over the moon.", "eats."]
    return [
        {
            "ind": n,
            "activity_label": "Cats",
            "ctx_a": "A cat waits.",
            "ctx_b": "it",
            "ctx": "A cat waits. [header] It",
            "endings": endings,
            "label": n % 4,
        }
        for n in range(count)
    ]


def hellaswag(folder: Path) -> None:
    jsonl(folder / "hellaswag_val.jsonl", _hellaswag_rows(4))
    jsonl(folder / "hellaswag_train.jsonl", _hellaswag_rows(30))


def hellaswag_hub(folder: Path) -> None:
    for split, count in (("validation", 4), ("train", 30)):
        parquet(folder / "data" / shard(split), [row | {"label": str(row["label"])} for row in _hellaswag_rows(count)])


def _xcopa_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "premise": "Ta kukkus.",
            "choice1": "Ta nuttis.",
            "choice2": "Ta naeris.",
            "question": ("cause", "effect")[n % 2],
            "label": n % 2,
            "idx": n,
            "changed": False,
        }
        for n in range(count)
    ]


def xcopa(folder: Path) -> None:
    jsonl(folder / "data" / "et" / "test.et.jsonl", _xcopa_rows(4))
    jsonl(folder / "data" / "et" / "val.et.jsonl", _xcopa_rows(25))


def xcopa_hub(folder: Path) -> None:
    parquet(folder / "et" / shard("test"), _xcopa_rows(4))
    parquet(folder / "et" / shard("validation"), _xcopa_rows(25))


# ── reasoning, code ────────────────────────────────────────────────────────────────────────────────────────


def bbh(folder: Path) -> None:
    sports = [
        {"input": f"Is {n} plausible?\nOptions:\n(A) yes\n(B) no", "target": "(A)" if n else "(B)"} for n in range(3)
    ]
    words = [
        {"input": "Sort: b a", "target": "a b"},
        {"input": "Is it valid?", "target": "valid"},
        {"input": "Close: [", "target": "]"},
    ]
    for name, examples in (("sports", sports), ("word_sorting", words)):
        text(folder / "bbh" / f"{name}.json", json.dumps({"canary": "made up", "examples": examples}))
    shots = "\n\n".join(
        f"Q: Is {n} here?\nOptions:\n(A) yes\n(B) no\nA: Let's think step by step.\nIt is {n}.\nSo the answer is (A)."
        for n in range(3)
    )
    text(folder / "cot-prompts" / "sports.txt", f"canary\n-----\nSay whether it is plausible.\n\n{shots}\n")
    text(folder / "cot-prompts" / "word_sorting.txt", "canary\n-----\nSort.\n\n" + shots.replace("(A).", "b c."))


ADD = {"task_id": "HumanEval/0", "prompt": 'import math\n\n\ndef add(a: int, b: int) -> int:\n    """Adds.\n    >>> add(1, 2)\n    3\n    """\n',
       "entry_point": "add", "canonical_solution": "    return math.floor(a) + b\n", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}  # fmt: skip


def human_eval(folder: Path) -> None:
    jsonl(folder / "HumanEval.jsonl.gz", [ADD])


def human_eval_hub(folder: Path) -> None:
    parquet(folder / "openai_humaneval" / shard("test"), [ADD])


def _mbpp_rows(key: str) -> list[dict[str, Any]]:
    return [
        {
            "task_id": n,
            key: "Write a function that doubles.",
            "code": "def double(x):\r\n    return 2 * x",
            "test_list": ["assert double(2) == 4", "assert double('a') == 'aa'"],
        }
        for n in (2, 3, 4, 11, 12, 520)
    ]


def mbpp(folder: Path) -> None:
    jsonl(
        folder / "mbpp.jsonl", [row | {"test_setup_code": "", "challenge_test_list": []} for row in _mbpp_rows("text")]
    )


def mbpp_hub(folder: Path) -> None:
    parquet(folder / shard("test"), [row | {"test_imports": ["import math"]} for row in _mbpp_rows("prompt")])


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────


def drop(folder: Path) -> None:
    empty = {"number": "", "spans": [], "date": {"day": "", "month": "", "year": ""}}
    answers = [
        empty | {"number": "3"},
        empty | {"spans": ["Ann", "Ben"]},
        empty | {"date": {"day": "2", "month": "May", "year": "1900"}},
    ]
    pairs = [
        {"question": f"Which {n}?", "query_id": f"q{n}", "answer": answer, "validated_answers": []}
        for n, answer in enumerate(answers)
    ]
    for split in ("dev", "train"):
        text(
            folder / f"drop_dataset_{split}.json",
            json.dumps({"p1": {"passage": f"Ann and Ben scored 3 goals in {split}.", "qa_pairs": pairs}}),
        )


def drop_hub(folder: Path) -> None:
    rows = [
        {
            "section_id": "s",
            "query_id": f"q{n}",
            "passage": f"Ann and Ben scored {n}.",
            "question": "Who?",
            "answers_spans": {"spans": ["Ann", "Ben"], "types": ["span", "span"]},
        }
        for n in range(4)
    ]
    for split in ("validation", "train"):
        parquet(folder / "data" / shard(split), rows)


def xquad(folder: Path) -> None:
    for language, context, answer in (("de", "Das Haus ist rot.", "rot"), ("zh", "房子是红色的。", "红色")):
        question = {"id": "1", "question": "?", "answers": [{"text": answer, "answer_start": 0}]}
        text(
            folder / f"xquad.{language}.json",
            json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}),
        )


def xquad_hub(folder: Path) -> None:
    parquet(
        folder / "xquad.de" / shard("validation"),
        [{"id": "1", "context": "Rot.", "question": "?", "answers": {"text": ["Rot"], "answer_start": [0]}}],
    )


# ── languages ──────────────────────────────────────────────────────────────────────────────────────────────

ENGLISH, GERMAN = ["The house is red.", "We eat bread today."], ["Das Haus ist rot.", "Wir essen heute Brot."]


def wmt(folder: Path) -> None:
    for name in ("wmt23", "dev"):
        text(folder / f"{name}.en-de.src", "\n".join(ENGLISH) + "\n")
        text(folder / f"{name}.en-de.ref", "\n".join(GERMAN) + "\n")


def wmt_hub(folder: Path) -> None:
    rows = [{"translation": {"de": de, "en": en}} for en, de in zip(ENGLISH, GERMAN, strict=True)]
    for split in ("test", "validation"):
        parquet(folder / "de-en" / shard(split), rows)


def flores(folder: Path) -> None:
    for split in ("dev", "devtest"):
        for language, sentences in (("eng_Latn", ENGLISH), ("deu_Latn", GERMAN)):
            text(folder / split / f"{language}.{split}", "\n".join(sentences) + "\n")


SUMMARIES = [
    {
        "id": str(n),
        "url": "u",
        "title": "t",
        "text": f"The house number {n} burned down.",
        "summary": f"House {n} burned.",
    }
    for n in range(4)
]


def xlsum(folder: Path) -> None:
    for split in ("test", "val", "train"):
        jsonl(folder / f"english_{split}.jsonl", SUMMARIES)
    jsonl(
        folder / "thai_test.jsonl",
        [{"id": "0", "url": "u", "title": "t", "text": "บ้านไฟไหม้แล้ว", "summary": "บ้านไฟไหม้"}],
    )


def xlsum_hub(folder: Path) -> None:
    for split in ("test", "validation", "train"):
        parquet(folder / "english" / shard(split), SUMMARIES)


def wikilingua(folder: Path) -> None:
    for split in ("test", "val", "train"):
        jsonl(
            folder / f"english_{split}.jsonl", [{"source": row["text"], "target": row["summary"]} for row in SUMMARIES]
        )


def wikilingua_hub(folder: Path) -> None:
    article = {"section_name": ["a", "b"], "document": ["Boil water.", "Add tea."], "summary": ["Boil.", "Add."]}
    parquet(
        folder / "english" / shard("train"),
        [{"url": "u", "article": article | {"document": [f"Boil {n}."]}} for n in range(7)],
    )


# ── instructions ───────────────────────────────────────────────────────────────────────────────────────────


def _ifeval_rows() -> list[dict[str, Any]]:
    return [
        {"key": 1, "prompt": "Two words, no comma.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"], "kwargs": [{}, {"relation": "at least", "num_words": 2}]},
        {"key": 2, "prompt": "As JSON.", "instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]},
    ]  # fmt: skip


def ifeval(folder: Path) -> None:
    jsonl(folder / "input_data.jsonl", _ifeval_rows())


def ifeval_hub(folder: Path) -> None:
    rows = [
        row | {"kwargs": [{"relation": None, "num_words": None, **arguments} for arguments in row["kwargs"]]}
        for row in _ifeval_rows()
    ]
    parquet(folder / "data" / shard("train"), rows)


LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "gsm8k": [gsm8k, gsm8k_hub], "math": [math, math_hub], "mgsm": [mgsm, mgsm_hub], "mmlu": [mmlu, mmlu_hub],
    "hellaswag": [hellaswag, hellaswag_hub], "xcopa": [xcopa, xcopa_hub], "bbh": [bbh], "humaneval": [human_eval, human_eval_hub],
    "mbpp": [mbpp, mbpp_hub], "drop": [drop, drop_hub], "xquad": [xquad, xquad_hub], "wmt": [wmt, wmt_hub], "flores": [flores],
    "xlsum": [xlsum, xlsum_hub], "wikilingua": [wikilingua, wikilingua_hub], "ifeval": [ifeval, ifeval_hub], "reasoning": [reasoning],
}  # fmt: skip
