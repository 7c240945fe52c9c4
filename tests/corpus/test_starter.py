"""The starter corpus: properties of its documents, checked on a small build."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alhena.content import Audio, Document, Image, Text, ToolCall, ToolResult, Video
from alhena.corpus.starter import FACTORIES, TASKS, Job, Starter, build, make_job
from alhena.corpus.starter.images.digits import scans
from alhena.corpus.starter.items import ItemSpec
from alhena.corpus.starter.splits import (
    COLORS,
    HELD_OUT_NUMBERS,
    HELD_OUT_PAIRS,
    PAIRS,
    SHAPES,
    SPLITS,
    is_held_out_string,
)
from alhena.corpus.starter.text import long_retrieval, renamed
from alhena.corpus.starter.text.multilingual_names import translations
from alhena.corpus.starter.text.prose_and_code import standard_library
from alhena.documents import read_documents
from alhena.media import decode_audio, decode_image, decode_video

SMALL = Starter(train=dict.fromkeys(FACTORIES, 12), validation=3, test=10, seed=5)
Corpus = dict[str, list[Document]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw")
    counts = build(path, SMALL, workers=1)
    assert counts == {split: SMALL.counts(split) for split in SPLITS}
    return path


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return {split: list(read_documents(folder / f"{split}.parquet")) for split in SPLITS}


@pytest.fixture(scope="module")
def many() -> Corpus:
    """More items of the tasks with held-out combinations, to find rare overlaps."""
    sources = (
        "scenes",
        "spoken",
        "speech",
        "video",
        "drawing",
        "digits",
        "translation",
        "retrieval",
        "ocr",
        "tools",
        "reasoning",
    )
    documents: Corpus = {"train": [], "test": []}
    for source in sources:
        documents["train"] += make_job(Job(source, "train", 100, 300, 5))
        for task in TASKS:
            if task.split("/")[0] == source:
                documents["test"] += make_job(Job(task, "test", 100, 140, 5))
    return documents


def turns(document: Document) -> Iterator[tuple[str, str]]:
    for user, model in zip(document.contents[::2], document.contents[1::2], strict=True):
        question, answer = user.parts[-1], model.parts[0]
        yield (
            question.text if isinstance(question, Text) else document.facts["words"],
            answer.text if isinstance(answer, Text) else "",
        )


def figures(document: Document) -> set[str]:
    """Colored shapes that a document shows or names."""
    text = " ".join(part.text for part in document.parts if isinstance(part, Text)).lower()
    named = set(re.findall(rf"(?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})", text))
    return named | set(document.facts.get("figures", ())) | {f for f, _ in document.facts.get("moving", ()) if " " in f}


def test_every_medium_decodes_to_the_documented_sizes(corpus: Corpus) -> None:
    kinds = set()
    for document in (d for documents in corpus.values() for d in documents):
        for part in document.parts:
            kinds.add(type(part))
            if isinstance(part, Image):
                height, width = decode_image(part.data).shape[:2]
                assert height % 16 == width % 16 == 0
                assert 32 <= min(height, width) <= max(height, width) <= 160
            elif isinstance(part, Audio):
                samples = decode_audio(part.data)
                assert 0.15 < len(samples) / 16_000 < (31 if document.source == "needles" else 3)
                assert 0.15 < np.abs(samples).max() <= 1
                assert samples.std() > (0.001 if document.source == "needles" else 0.01)
            elif isinstance(part, Video):
                frames = len(decode_video(part.data, 64).frames)
                assert 1 <= frames <= 6 if document.source == "needles" else frames == 6
    assert kinds == {Text, Image, Audio, Video, ToolCall, ToolResult}


def test_ids_are_unique_and_test_items_have_one_question(corpus: Corpus) -> None:
    ids = [d.id for documents in corpus.values() for d in documents]
    assert len(ids) == len(set(ids))
    for document in corpus["test"] + corpus["validation"]:
        roles = [content.role for content in document.contents]
        roles = roles[roles[0] == "system" :]
        with_result = document.facts["task"] == "tools/answer" and roles == ["user", "model", "tool", "model"]
        assert roles in (["user", "model"], ["document"]) or with_result
        assert document.facts["task"] in (*TASKS, "pages", "needles")
    assert np.mean([len(d.contents) for d in corpus["train"] if d.source == "scenes"]) > 4


def test_answers_are_short_and_lower_case(corpus: Corpus) -> None:
    for document in [d for d in corpus["train"] if d.source not in ("tools", "reasoning")]:
        for question, answer in turns(document) if document.contents[0].role == "user" else ():
            if document.source not in ("charts", "translation"):
                assert answer == answer.lower()
            assert (
                len(answer.split()) <= 3 or document.source == "speech" or question in ("Describe.",) or "," in answer
            )
            assert document.source.startswith("retrieval") or len(question) < 60


def test_held_out_figures_appear_in_the_test_alone(corpus: Corpus, many: Corpus) -> None:
    held_out = {" ".join(pair) for pair in HELD_OUT_PAIRS}
    trained = set().union(*(figures(d) for d in corpus["train"] + corpus["validation"] + many["train"]))
    assert len(trained) == len(PAIRS) - len(held_out)
    assert not trained & held_out
    for document in corpus["test"] + many["test"]:
        if document.source in ("scenes", "spoken") or document.facts["task"] == "drawing/shape":
            shown = figures(document) & held_out
            assert shown
            if document.facts["task"] != "scenes/count" and document.source != "drawing":
                question, answer = next(turns(document))
                asked = {*re.findall(r"\w+", question.lower()), answer}
                assert any(asked & set(pair.split()) for pair in shown)


def test_held_out_moves_numbers_and_strings(corpus: Corpus, many: Corpus) -> None:
    def moves(documents: list[Document]) -> set[tuple[str, str]]:
        pairs = (pair for d in documents for pair in d.facts.get("moving", ()))
        return {(figure.split()[1], direction) for figure, direction in pairs if " " in figure and direction != "still"}

    def numbers(documents: list[Document], source: str) -> set[str]:
        return {answer.replace(" ", "") for d in documents if d.source == source for _, answer in turns(d)}

    train, test = corpus["train"] + corpus["validation"] + many["train"], corpus["test"] + many["test"]
    asked = [d for d in test if d.facts["task"] in ("video/direction", "video/what")]
    assert len(moves(asked)) == 6
    assert len(moves(train)) == 18
    assert not moves(train) & moves(asked)

    strings = numbers(train, "digits") | {a for a in numbers(train, "video") if a.isdigit()}
    asked_strings = numbers(test, "digits") | numbers([d for d in test if d.facts["task"] == "video/order"], "video")
    assert {s for s in asked_strings & strings if len(s) > 1} == set()
    assert all(is_held_out_string(s) for s in asked_strings if len(s) > 1)

    assert not numbers(train, "speech") & numbers(test, "speech")
    assert {len(str(n)) for n in HELD_OUT_NUMBERS} == {2}


def test_held_out_requests_words_modules_and_keys(corpus: Corpus, many: Corpus) -> None:
    def seen(documents: list[Document]) -> dict[str, set[object]]:
        found: dict[str, set[object]] = defaultdict(set)
        for d in documents:
            if d.source == "translation":
                found["requests"] |= {tuple(request) for request in d.facts["items"]}
            elif d.source == "ocr":
                found["words"].add(d.facts["text"])
            elif d.source in ("text", "code"):
                found["modules"].add(d.facts["module"])
            elif d.source == "tools" and d.facts["task"] in ("tools", "tools/call", "tools/answer"):
                found["calls"] |= {tuple(d.facts["pairs"][0])} if "pairs" in d.facts else set()
            elif d.facts["task"] in ("reasoning", "reasoning/answer", "reasoning/steps") and d.facts["steps"] > 1:
                found["sums"].add(tuple(re.findall(r"-?\d+", sum_of(d))[:3]))
            elif d.source == "retrieval":
                found["keys"].add(frozenset(re.findall(r"(\w+) \w+[,.]", next(turns(d))[0])))
        return found

    train, test = seen(corpus["train"] + many["train"]), seen(corpus["test"] + many["test"])
    for kind in ("requests", "words", "modules", "keys", "calls", "sums"):
        assert len(test[kind]) > 5
        assert not train[kind] & test[kind], kind
    stated = {item for d in make_job(Job("names", "train", 0, 400, 0)) for item in d.facts["items"]}
    assert {item for d in many["test"] if d.source == "translation" for item, _ in d.facts["items"]} <= stated


def test_train_and_test_share_no_text_chunk_and_no_scan() -> None:
    for source in ("text", "code"):
        train, test = ({chunk for _, chunk in standard_library()[source, split]} for split in ("train", "test"))
        assert len(train) > 2000
        assert len(test) > 300
        assert not train & test
        assert all(len(chunk) <= 500 for chunk in train | test)
    train_scans = {scan.tobytes() for digit in range(10) for scan in scans("train", digit)}
    test_scans = {scan.tobytes() for digit in range(10) for scan in scans("test", digit)}
    assert len(train_scans) > 1100
    assert len(test_scans) > 250
    assert not train_scans & test_scans


def test_renamed_words_are_exchanged_one_for_one_and_with_words_of_the_same_split() -> None:
    text, words = long_retrieval.filler(np.random.default_rng(0), "train", 20_000), renamed.words_of("train")
    names = [renamed.exchange(np.random.default_rng(seed), words) for seed in range(20)]
    for exchanged in names:
        changed = renamed.rename(text, exchanged)
        assert renamed.rename(changed, {new: old for old, new in exchanged.items()}) == text
    shares = [len(exchanged) / len(words) for exchanged in names]
    assert min(shares) < 0.2
    assert max(shares) > 0.8
    assert len({exchanged.get("self") for exchanged in names}) > 5
    document = renamed.make(ItemSpec("renamed", "train", 0, 0))
    used = set(renamed.WORD.findall("".join(part.text for part in document.parts if isinstance(part, Text))))
    assert used <= set(words)
    assert len(used - set(renamed.words_of("test"))) > 100


def test_answers_agree_with_the_pixels(many: Corpus) -> None:
    """The color in the answer is that of the only figure; the center of mass of a clip moves in the direction of the answer."""
    checked = 0
    for d in many["test"]:
        media = next(iter(d.parts))
        if d.facts["task"] == "scenes/colour" and len(d.facts["figures"]) == 1 and isinstance(media, Image):
            pixels = decode_image(media.data).astype(int)
            color = np.median(pixels[np.ptp(pixels, axis=2) > 60], axis=0)
            nearest = min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) - color).sum()))
            assert [("What colour is it?", nearest)] == list(turns(d))
            checked += 1
        elif d.facts["task"] == "video/direction" and isinstance(media, Video):
            ink = 255.0 - decode_video(media.data, 6).frames[[0, -1]].min(axis=-1)
            ink[ink < 30] = 0
            rows, columns = np.mgrid[: ink.shape[1], : ink.shape[2]]
            y, x = ((ink * grid).sum((1, 2)) / ink.sum((1, 2)) for grid in (rows, columns))
            dx, dy = x[1] - x[0], y[1] - y[0]
            direction = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
            assert next(turns(d))[1] == direction
            checked += 1
    assert checked > 45


def test_the_four_relations_are_balanced(many: Corpus) -> None:
    answers = [a for d in many["train"] if d.source == "scenes" for q, a in turns(d) if q.startswith("Where is ")]
    assert all(0.1 < answers.count(relation) / len(answers) < 0.4 for relation in ("left", "right", "above", "below"))


def test_documents_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    build(tmp_path, SMALL, workers=2)
    for split in SPLITS:
        assert list(read_documents(tmp_path / f"{split}.parquet")) == list(read_documents(folder / f"{split}.parquet"))
    assert (tmp_path / "samples.png").read_bytes() == (folder / "samples.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.png", *(f"{s}.parquet" for s in sorted(SPLITS))]


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ValueError, match="no source 'scense'"):
        Starter(train={"scense": 3})


def test_another_seed_gives_other_items() -> None:
    one, other = (make_job(Job("scenes", "train", 0, 3, seed)) for seed in (0, 1))
    assert all(a.contents != b.contents for a, b in zip(one, other, strict=True))


def test_names_span_languages_and_scripts() -> None:
    words = translations()
    assert len({language for names in words.values() for language in names}) >= 12
    assert words["March"] == {
        "de": "März", "fr": "mars", "es": "marzo", "it": "marzo", "pt": "março", "pl": "marzec", "tr": "Mart",
        "ru": "март", "el": "Μάρτιος", "hi": "मार्च", "zh": "三月", "ja": "3月", "ar": "مارس",
    }  # fmt: skip
    assert words["Germany"]["ja"] == "ドイツ"
    assert words["thirty"]["fr"] == "trente"


def test_a_call_names_a_declared_tool_and_its_parameters(many: Corpus) -> None:
    called = [(d, p) for d in [*many["train"], *many["test"]] for p in d.parts if isinstance(p, ToolCall)]
    assert len({call.name for _, call in called}) > 60
    for document, call in called:
        (tool,) = [tool for tool in document.facts["tools"] if tool["name"] == call.name]
        parameters = tool["parameters"]
        assert {*parameters["required"]} <= {*call.arguments} <= {*parameters["properties"]}
        for name, value in call.arguments.items():
            kind = {"string": str, "integer": int, "number": int, "boolean": bool}[
                parameters["properties"][name]["type"]
            ]
            assert type(value) is kind
            assert kind is bool or str(value) in turns_text(document)


def turns_text(document: Document) -> str:
    return " ".join(p.text for c in document.contents if c.role == "user" for p in c.parts if isinstance(p, Text))


def sum_of(document: Document) -> str:
    """The problem of a reasoning document as a sum."""
    told = re.sub(r", (?:loses|sells|gives away) ", "-", document.facts["problem"])
    told = re.sub(r", (?:finds|buys|gets) ", "+", told)
    return re.sub(r"[^0-9+-]", "", told)


def test_worked_steps_and_bare_answers_are_those_of_the_problem(many: Corpus) -> None:
    documents = [d for split in ("train", "test") for d in many[split] if d.source == "reasoning"]
    assert {d.facts["steps"] for d in many["train"] if d.source == "reasoning"} == {1, 2, 3, 4}
    assert {d.facts["steps"] for d in many["test"] if d.facts["task"] == "reasoning/longer"} == {5, 6}
    bare = 0
    for document in documents:
        total, *steps = [int(n) for n in re.findall(r"[+-]?\d+", sum_of(document))]
        assert len(steps) == document.facts["steps"]
        question, answer = next(turns(document))
        expected = []
        for step in steps:
            expected.append(f"{total}{step:+d}={total + step}")
            total += step
            assert 0 <= total <= 9
        bare += question.endswith("Only the answer.")
        worked = f"{' '.join(expected)} answer {total}"
        assert answer == (worked if question.endswith("Show your steps.") else str(total))
    assert 0.2 < bare / len(documents) < 0.6


def test_extracted_json_has_the_values_of_its_sentence(many: Corpus) -> None:
    asked = [d for d in many["test"] if d.facts["task"] == "tools/json"]
    assert len(asked) == 40
    for document in asked:
        values = [*json.loads(document.contents[-1].parts[0].text).values()]
        for value in [v for one in values for v in (one if isinstance(one, list) else [one]) if v is not None]:
            assert str(value) in turns_text(document)
