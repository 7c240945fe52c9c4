"""Small files in the public layouts of the benchmarks that ask about images; for each layout a function that writes it, and small media."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from alhena.media import encode_audio, encode_video
from tests.evaluate.benchmark_files import jsonl, parquet, shard, text


def image(n: int, format: str = "PNG") -> bytes:
    """A picture of its own for each number."""
    out = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    Pillow.fromarray(pixels).save(out, format)
    return out.getvalue()


def audio(n: int, format: str = "FLAC") -> bytes:
    """A tenth of a second of its own for each number."""
    return encode_audio(np.sin(np.arange(1600) * (n + 1) / 20).astype(np.float32) / 2, format=format)


@cache
def video(n: int) -> bytes:
    """Two seconds of its own for each number."""
    return encode_video(list(np.random.default_rng(n).integers(0, 255, (4, 16, 16, 3)).astype(np.uint8)), 2)


def file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cell(data: bytes) -> dict[str, Any]:
    """A medium as the hub stores it."""
    return {"bytes": data, "path": "some/where.bin"}


def json_file(path: Path, value: Any) -> None:
    text(path, json.dumps(value, ensure_ascii=False))


# ── short answers ──────────────────────────────────────────────────────────────────────────────────────────

ANSWERS = [["red"] * 10, ["2"] * 6 + ["two"] * 4, ["yes"] * 4 + ["no"] * 3 + ["maybe"] * 3]


def _annotators(answers: Sequence[str]) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]


def vqav2(folder: Path) -> None:
    for name in ("val2014", "train2014"):
        questions = [{"image_id": n, "question": f"What is {n}?", "question_id": 10 * n} for n in range(3)]
        annotations = [
            {
                "image_id": n,
                "question_id": 10 * n,
                "answer_type": "other",
                "multiple_choice_answer": a[0],
                "answers": _annotators(a),
            }
            for n, a in enumerate(ANSWERS)
        ]
        json_file(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", {"info": {}, "questions": questions})
        json_file(folder / f"v2_mscoco_{name}_annotations.json", {"info": {}, "annotations": annotations})
        for n in range(3):
            file(folder / name / f"COCO_{name}_{n:012}.jpg", image(n, "JPEG"))


def vqav2_hub(folder: Path) -> None:
    rows = [
        {
            "question_id": n,
            "image_id": n,
            "question": "What?",
            "answer_type": "number",
            "answers": _annotators(a),
            "image": cell(image(n)),
        }
        for n, a in enumerate(ANSWERS)
    ]
    parquet(folder / "data" / shard("validation"), rows)


def textvqa(folder: Path) -> None:
    for name in ("val", "train"):
        data = [
            {"question_id": n, "question": f"Which word {n}?", "image_id": f"ab{n}", "answers": a}
            for n, a in enumerate(ANSWERS)
        ]
        json_file(folder / f"TextVQA_0.5.1_{name}.json", {"dataset_type": name, "data": data})
    for n in range(3):
        file(folder / "train_images" / f"ab{n}.jpg", image(n, "JPEG"))


def textvqa_hub(folder: Path) -> None:
    rows = [
        {"question_id": n, "question": "?", "answers": a, "image": cell(image(n)), "ocr_tokens": ["x"]}
        for n, a in enumerate(ANSWERS)
    ]
    for split in ("validation", "train"):
        parquet(folder / "data" / shard(split), rows)


DOCUMENT_ANSWERS = [["12 May 1990", "May 12, 1990"], ["Ann Smith"], ["14.5%"]]


def docvqa(folder: Path) -> None:
    for name in ("val", "train"):
        data = [
            {"questionId": n, "question": "When?", "image": f"documents/p{n}.png", "answers": a, "docId": n}
            for n, a in enumerate(DOCUMENT_ANSWERS)
        ]
        json_file(folder / f"{name}_v1.0_withQT.json", {"dataset_name": "docvqa", "data": data})
    for n in range(3):
        file(folder / "documents" / f"p{n}.png", image(n))


def _documents_hub(path: Path) -> None:
    rows = [
        {"questionId": str(n), "question": "?", "answers": a, "image": cell(image(n))}
        for n, a in enumerate(DOCUMENT_ANSWERS)
    ]
    parquet(path, rows)


def docvqa_hub(folder: Path) -> None:
    _documents_hub(folder / "DocVQA" / shard("validation"))


def infographicvqa(folder: Path) -> None:
    data = [
        {"questionId": n, "question": "?", "image_local_name": f"{n}.jpeg", "answers": a}
        for n, a in enumerate(DOCUMENT_ANSWERS)
    ]
    json_file(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": data})
    for n in range(3):
        file(folder / "infographicsvqa_images" / f"{n}.jpeg", image(n, "JPEG"))


def infographicvqa_hub(folder: Path) -> None:
    _documents_hub(folder / "InfographicVQA" / shard("validation"))


CHARTS = [("How many?", "1,234"), ("Which share?", "14.5%"), ("Which country?", "Chile"), ("None?", "0")]


def chartqa(folder: Path) -> None:
    for split in ("test", "train"):
        for part in ("human", "augmented"):
            rows = [{"imgname": f"{n}.png", "query": q, "label": a} for n, (q, a) in enumerate(CHARTS)]
            json_file(folder / split / f"{split}_{part}.json", rows)
        for n in range(4):
            file(folder / split / "png" / f"{n}.png", image(n))


def chartqa_hub(folder: Path) -> None:
    rows = [
        {"type": f"{('human', 'augmented')[n % 2]}_test", "question": q, "answer": a, "image": cell(image(n))}
        for n, (q, a) in enumerate(CHARTS)
    ]
    parquet(folder / "data" / shard("test"), rows)


# ── choices ────────────────────────────────────────────────────────────────────────────────────────────────


def ai2d(folder: Path) -> None:
    text(folder / "ai2d_test_ids.csv", "1\n2\n")
    for n in (1, 2, 3):
        questions = {
            f"What is {n}?": {
                "abcLabel": False,
                "answerTexts": ["sun", "moon", "sea", "leaf"],
                "correctAnswer": n,
                "questionId": f"{n}.png-0",
            }
        }
        json_file(folder / "questions" / f"{n}.png.json", {"imageName": f"{n}.png", "questions": questions})
        file(folder / "images" / f"{n}.png", image(n))


def ai2d_hub(folder: Path) -> None:
    rows = [
        {"question": "What?", "options": ["sun", "moon", "sea", "leaf"], "answer": str(n), "image": cell(image(n))}
        for n in range(4)
    ]
    parquet(folder / "data" / shard("test"), rows)


def mmmu(folder: Path) -> None:
    rows = [
        {
            "id": "Art_1",
            "question": "See <image 1>: which of these?",
            "options": "['<image 2>', 'none', \"it's red\"]",
            "answer": "A",
            "question_type": "multiple-choice",
        },
        {
            "id": "Art_2",
            "question": "How many?",
            "options": "[]",
            "answer": "1,200",
            "question_type": "open",
        },
        {
            "id": "Art_3",
            "question": "How many in <image 2>?",
            "options": "[]",
            "answer": "['12', 'twelve']",
            "question_type": "open",
        },
    ]
    for split in ("validation", "dev"):
        of_split = [
            row
            | {"id": f"{split}_{row['id']}", "image_1": cell(image(n)), "image_2": cell(image(9)) if n != 1 else None}
            for n, row in enumerate(rows)
        ]
        parquet(folder / "Art" / shard(split), of_split)


MATHVISTA = [
    {"question": "Which?", "choices": ["5", "7"], "answer": "7", "question_type": "multi_choice", "answer_type": "text", "precision": None, "unit": None},
    {"question": "How long?", "choices": None, "answer": "1.2", "question_type": "free_form", "answer_type": "float", "precision": 1.0, "unit": "cm"},
    {"question": "How many?", "choices": None, "answer": "145", "question_type": "free_form", "answer_type": "integer", "precision": None, "unit": None},
    {"question": "List.", "choices": None, "answer": "[1, 2]", "question_type": "free_form", "answer_type": "list", "precision": None, "unit": None},
]  # fmt: skip


def mathvista(folder: Path) -> None:
    problems = {
        str(n): row | {"image": f"images/{n}.jpg", "metadata": {"task": "geometry"}} for n, row in enumerate(MATHVISTA)
    }
    json_file(folder / "testmini.json", problems)
    for n in range(4):
        file(folder / "images" / f"{n}.jpg", image(n, "JPEG"))


def mathvista_hub(folder: Path) -> None:
    rows = [
        row | {"pid": str(n), "image": f"images/{n}.jpg", "decoded_image": cell(image(n)), "metadata": {"task": "t"}}
        for n, row in enumerate(MATHVISTA)
    ]
    parquet(folder / "data" / shard("testmini"), rows)


def nlvr(folder: Path) -> None:
    rows = [
        {
            "identifier": f"{n}-0",
            "directory": "2",
            "sentence": f"There are {n} boxes.",
            "label": ("true", "false")[n % 2],
        }
        for n in range(4)
    ]
    for split in ("dev", "train"):
        jsonl(folder / split / f"{split}.json", rows)
        for n in range(4):
            file(folder / split / "images" / "2" / f"{split}-{n}-0-0.png", image(n))


def nlvr2(folder: Path) -> None:
    for split in ("test1", "dev"):
        rows = [
            {"identifier": f"{split}-7-1-{n}", "sentence": f"Both have {n} dogs.", "label": ("True", "False")[n % 2]}
            for n in range(2)
        ]
        jsonl(folder / "data" / f"{split}.json", rows)
        for side in (0, 1):
            file(folder / split / f"{split}-7-1-img{side}.png", image(side))
