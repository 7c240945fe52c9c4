"""Scores, extraction and files of the benchmarks with media: definitions of the publishers, bounds, and items asked of a model that knows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import pytest

from alhena.content import Audio, Excerpt, Image, Text, Video
from alhena.corpus.starter.images.generation import draw_digit, draw_shape
from alhena.evaluate.benchmarks.benchmark_run import Options, run_task
from alhena.evaluate.card.examples import read_examples
from alhena.evaluate.models.interface import Advance, Completed, Completion, Continuation, Likelihood, no_advance
from alhena.evaluate.tasks.catalog import BENCHMARKS
from alhena.evaluate.tasks.extraction import short_answer, spoken_text
from alhena.evaluate.tasks.items import Item, loaded
from alhena.evaluate.tasks.media import error_rates, scores
from alhena.evaluate.tasks.media.cider import cider, frequencies
from alhena.evaluate.tasks.media.image_choices import same_rounded, truth
from alhena.evaluate.tasks.media_files import Cell, Medium, load
from alhena.media import LIMITS, encode_png
from tests.evaluate.benchmark_files import jsonl, parquet
from tests.evaluate.image_benchmark_files import cell, file, image
from tests.evaluate.media_benchmark_files import MEDIA_LAYOUTS

# ── definitions of the publishers ──────────────────────────────────────────────────────────────────────────


def test_cider_is_that_of_the_published_code():
    """The numbers are those of cider_scorer.py of pycocoevalcap (n=4, sigma=6) on these texts."""
    references = [
        ["a red house by the river", "the house is red"],
        ["two dogs run on grass", "dogs run"],
        ["a man eats bread in a red house", "man with bread", "a man"],
    ]
    f = frequencies("", references)
    answers = ["the red house by a river", "two dogs run", "a cat"]
    expected = [2.52956624, 4.3129623, 0.15875843]
    assert [cider(r, a, f) for r, a in zip(references, answers, strict=True)] == pytest.approx(expected)
    assert [cider(r, r[0], f) for r in references] == pytest.approx([5.54060449, 6.24923562, 4.10873453])
    assert cider(references[0], "", f) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    # Ten annotators: blue six times, navy blue twice, black, red.
    [("blue", 1), ("Blue.", 1), ("a blue", 1), ("navy blue", (2 * 1 / 3 + 8 * 2 / 3) / 10), ("red", 0.3), ("green", 0), ("", 0)],
)  # fmt: skip
def test_vqa_accuracy_leaves_each_annotator_out(answer, expected):
    item = Item("", "", ("blue",) * 6 + ("navy blue",) * 2 + ("black", "red"))
    assert scores.vqa_accuracy(item, answer) == pytest.approx(expected)


def test_normal_answers_of_vqa():
    normal = {
        "The two Dogs!": "2 dogs", "dont": "don't", "couldntve": "couldn't've", "1,000": "1000", "3.5": "3.5", "no.": "no",
        "red/blue": "red blue", "red, blue": "red blue", "none": "0", "it's": "it's", "a\nb": "b",
    }  # fmt: skip
    assert {text: scores.normal_answer(text) for text in normal} == normal


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Ann Smith", 1), ("ann  smith", 1), ("Ann Smyth", 8 / 9), ("12 May", 1), ("Ben", 0), ("Ann", 0), ("", 0)],
)
def test_anls_is_zero_below_one_half(answer, expected):
    assert scores.anls(Item("", "", ("Ann Smith", "12 may")), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("100", ("100", "104.9", "95.0", "105"), ("106", "94", "-100", "", "about 100")),
        ("1,234", ("1234", "1,200", "$1234"), ("1134",)),
        ("14.5%", ("14.5%", "14%", "0.145"), ("14.5", "16%")),
        ("0", ("0",), ("0.01", "")),
        ("Chile", ("chile", " Chile "), ("Chili", "Chile and Peru", "")),
    ],
)
def test_relaxed_accuracy_allows_five_percent(reference, right, wrong):
    item = Item("", "", (reference,))
    assert [scores.relaxed(item, answer) for answer in right] == [1] * len(right)
    assert [scores.relaxed(item, answer) for answer in wrong] == [0] * len(wrong)


def test_error_rates_are_those_of_jiwer_in_whispers_normal_form():
    cases = {
        ("en", "Mr. Smith paid $20, didn't he?", "mister smith paid twenty dollars"): None,
        ("de", "Grüß Gott, Anna!", "gruss gott"): None,
        ("cmn_hans_cn", "你好，世界。", "你好世"): 1 / 4,
        ("ja", "おはよう", "おはようございます"): 5 / 4,
        ("en", "hello", ""): 1,
        ("de", "!?", "ja"): 1,
    }
    for (language, reference, answer), expected in cases.items():
        item = Item("", "", (reference,), facts={"language": language})
        words = [" ".join(error_rates.normal_words(text, language)) for text in (reference, answer)]
        assert error_rates.error_rate(item, answer) == pytest.approx(
            jiwer.wer(*words) if expected is None else expected
        )


def test_numbers_of_mathvista_are_compared_as_rounded():
    item = Item("", "", ("1.2",), facts={"options": (), "kind": "float", "digits": 1})
    assert [same_rounded(item, text) for text in ("1.2", "1.23 cm", "about 1.18", "1.3", "", "none")] == [
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    listed = Item("", "", ("[1, 2]",), facts={"options": (), "kind": "list", "digits": 0})
    assert [same_rounded(listed, text) for text in ("[1, 2]", "[2, 1]")] == [1, 0]


# ── outputs of several styles ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Blue", "Blue"), (" blue.\n", "blue"), ("**Blue**", "Blue"), ('The answer is "blue".', "blue"), ("Answer: 14.5%", "14.5%"),
        ("The chart shows rates.\n\nAnswer: **12**", "12"), ("U.S.A.", "U.S.A."), ("`12 May 1990`", "12 May 1990"), ("", ""),
    ],
)  # fmt: skip
def test_short_answers(output, expected):
    assert short_answer(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("good morning", "good morning"), ('"Good morning."', "Good morning."), ("Transcription: good\nmorning", "good morning"),
        ("Sure, here is the transcript of the audio:\n\n**Good morning.**", "Good morning."), ("The speaker says: “hello”", "hello"),
        ("At ten: a red house", "At ten: a red house"), ("", ""),
    ],
)  # fmt: skip
def test_transcripts(output, expected):
    assert spoken_text(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("True", "true"), ("false.", "false"), ("**True**, as both show dogs.", "true"), ("No, there is one.", "false"),
        ("The statement is false.", "false"), ("Answer: TRUE", "true"), ("It may be true or false.", ""), ("", ""),
    ],
)  # fmt: skip
def test_truth(output, expected):
    assert truth(Item("", "", ("true",)), output) == expected


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_media_are_read_below_their_folder_only(tmp_path):
    folder = tmp_path / "data"
    file(folder / "a.png", image(0))
    file(tmp_path / "secret.png", image(1))
    file(folder / "text.txt", b"hello")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with open(folder / "large.png", "wb") as large:
        large.truncate(LIMITS.bytes + 1)
    refused = {
        "../secret.png": "outside", str(tmp_path / "secret.png"): "outside", "link.png": "outside", "b.png": "no such file",
        "http://localhost/a.png": "URL not fetched", "file:///etc/passwd": "URL not fetched", "large.png": "too large",
        "text.txt": "not image", "a\0.png": "NUL",
    }  # fmt: skip
    media = {name: Medium("image", folder, name) for name in (*refused, "a.png")}
    read = load(media.values())
    assert read[media["a.png"]] == Image(image(0), "image/png")
    for name, reason in refused.items():
        assert isinstance(read[media[name]], str) and reason in read[media[name]], name


def test_media_of_parquet_files_are_read_with_their_items_only(tmp_path):
    """Cells of several row groups, a null, a file that is not there; rows themselves hold no bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "data" / "test-0.parquet"
    path.parent.mkdir()
    rows = [{"n": n, "image": cell(image(n)) if n != 4 else None} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    media = [Medium("image", path.parent, Cell(path, row, "image")) for row in (9, 1, 5, 4, 9)]
    read = load(media)
    for medium, n in zip(media, (8, 0, None, 3, 8), strict=True):
        part = read[medium]
        assert isinstance(part, str) if n is None else part.data == image(n)
    parquet(tmp_path / "textvqa" / "data" / "validation-0.parquet", [
        {"question_id": n, "question": "?", "answers": ["a"], "image": cell(image(n))} for n in range(3)
    ])  # fmt: skip
    items = list(BENCHMARKS["textvqa"].read(tmp_path / "textvqa", "test"))
    assert all(isinstance(medium, Medium) for item in items for medium in item.media)
    assert [item.media[0].data for item in loaded(items)] == [image(n) for n in range(3)]


def test_parts_of_combinations_keep_their_order(tmp_path):
    MEDIA_LAYOUTS["combinations"][0](tmp_path)
    task = BENCHMARKS["combinations"]
    first, second = loaded(list(task.read(tmp_path, "test")))
    kinds = [type(part) for part in task.direct.prompt(second, [first])]
    assert kinds == [Image, Audio, Text, Video, Text, Image, Text]
    (unknown,) = [{"parts": [{"picture": "a.png"}], "answers": ["x"]}]
    jsonl(tmp_path / "test.jsonl", [unknown])
    with pytest.raises(ValueError, match="a part has 'picture'; known are text, image, audio, video"):
        list(task.read(tmp_path, "test"))


def test_steps_of_a_video_are_excerpts(tmp_path):
    MEDIA_LAYOUTS["youcook2"][0](tmp_path)
    media = [item.media[0] for item in BENCHMARKS["youcook2"].read(tmp_path, "test")]
    assert [medium.excerpt for medium in media] == [Excerpt(0, 1), Excerpt(1, 3)] * 2
    assert {part.excerpt for part in load(media).values()} == {Excerpt(0, 1), Excerpt(1, 3)}


# ── a model that knows the answers ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Knows:
    """A model that looks an answer up by the media of a prompt."""

    answers: dict[bytes, Completed]
    name: str = "knows"

    def log_likelihoods(
        self, requests: Sequence[Continuation], advance: Advance = no_advance
    ) -> list[Likelihood | str]:
        raise AssertionError("choices after media cannot be scored")

    def complete(self, requests: Sequence[Completion], advance: Advance = no_advance) -> list[Completed | str]:
        return [self.answers[_key(request)] for request in requests]


def _key(request: Completion) -> bytes:
    media = [part.data for part in request.prompt if not isinstance(part, Text)]
    return media[-1] if media else request.prompt[-1].text.encode()


def run(name: str, folder: Path, answers: Callable[[Item], Completed], **options) -> tuple[dict, list[dict]]:
    task = BENCHMARKS[name]
    known = {}
    for item, with_media in zip(items := list(task.read(folder, "test")), loaded(items), strict=True):
        if isinstance(with_media, Item):
            prompt = task.direct.prompt(with_media, [])
            known[_key(Completion(prompt, 1))] = answers(item)
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    result = run_task(Knows(known), task, folder, out, Options(**options))
    return result, [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def said(text: str) -> Completed:
    return Completed(text, 1, False)


def test_an_item_whose_medium_cannot_be_read_counts_as_wrong_with_its_reason(tmp_path):
    """The mean over clean and other of the word errors; a recording that is missing has only deletions."""
    MEDIA_LAYOUTS["librispeech"][0](tmp_path / "librispeech")
    result, lines = run("librispeech", tmp_path / "librispeech", lambda item: said(item.reference.title()))
    assert (result["score"], result["not_asked"]) == (0, {})
    assert result["chance"] == 50
    missing = tmp_path / "librispeech" / "test-other" / "12" / "34" / "test-other12-34-0001.flac"
    missing.unlink()
    # In one recording the model says a word too many.
    wrong = "test-clean12-34-0000"
    result, lines = run(
        "librispeech", tmp_path / "librispeech", lambda item: said(item.reference + " now" * (wrong in item.id))
    )
    by_id = {line["id"].removeprefix("librispeech-"): line for line in lines}
    assert [(by_id[id]["score"], by_id[id]["weight"]) for id in (wrong, missing.stem)] == [(1 / 4, 4), (1, 4)]
    assert result["groups"] == {"clean": {"items": 2, "score": 12.5}, "other": {"items": 2, "score": 50.0}}
    assert result["score"] == 31.25
    assert list(result["not_asked"].values()) == [1]


def test_generated_images_are_judged(tmp_path):
    MEDIA_LAYOUTS["image_generation"][0](tmp_path / "image_generation")
    rng = np.random.default_rng(0)
    drawn = {"red circle": draw_shape(rng, ("red", "circle")), "7": draw_digit(rng, "train", 7)}
    images = {expected: encode_png(pixels) for expected, pixels in drawn.items()}
    result, lines = run(
        "image_generation", tmp_path / "image_generation", lambda item: Completed("", 1, False, images[item.reference])
    )
    assert (result["score"], [line["answer"] for line in lines]) == (100, ["red circle", "7"])
    shown = read_examples(tmp_path / "out" / "image_generation.examples.jsonl")
    assert all(example.answers["knows"].url.startswith("data:image/") for example in shown)
    other = {"red circle": images["7"], "7": b""}
    result, lines = run(
        "image_generation", tmp_path / "image_generation", lambda item: Completed("", 1, False, other[item.reference])
    )
    assert result["score"] == 0
    assert lines[1]["answer"] == ""


def test_choices_after_media_are_refused(tmp_path):
    MEDIA_LAYOUTS["ai2d"][0](tmp_path / "ai2d")
    with pytest.raises(ValueError, match="ask it with --protocol greedy"):
        run("ai2d", tmp_path / "ai2d", lambda item: said(item.reference), kind="choices")


def test_the_real_nlvr_is_read(tmp_path):
    """Statements about synthetic scenes, where the files are at hand: every statement has an id of its own, and the images are there."""
    import tarfile

    archive = Path(__file__).parents[2].parent / "shared" / "data" / "image" / "nlvr_dev.tar"
    if not archive.exists():
        return
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "dev", filter="data")
    items = list(BENCHMARKS["nlvr"].read(tmp_path, "test"))
    assert len({item.id for item in items}) == len(items) > 900
    assert not [reason for reason in loaded(items[::100]) if isinstance(reason, str)]
