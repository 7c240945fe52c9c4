"""Curate: invalid records are counted with their reason, no others are lost, evaluation items are removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alhena.content import Audio, Content, Document, Image, Text, Video
from alhena.corpus.curate import Curate, curate
from alhena.corpus.filters import Decontaminator, Deduplicator, inspect, quality
from alhena.corpus.readers import Dropped, read
from alhena.documents import from_row, read_documents, to_row, write_documents
from tests.conftest import random_audio, random_image

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
parts = st.one_of(
    st.builds(Text, texts), *(st.builds(kind, st.binary(max_size=9), st.just("a/b")) for kind in (Image, Audio, Video))
)
contents = st.builds(Content, st.sampled_from(["user", "model", "document"]), st.lists(parts, max_size=3).map(tuple))


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Document,
        st.lists(contents, max_size=3).map(tuple),
        texts,
        texts,
        st.just("de"),
        st.dictionaries(texts, st.integers()),
    )
)
def test_documents_round_trip_through_rows(document):
    assert from_row(to_row(document)) == document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "good.png").write_bytes(random_image(1).data)
    (folder / "good.flac").write_bytes(random_audio(1).data)
    (folder / "cut.png").write_bytes(random_image(1).data[:200])
    (folder / "none.wav").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(random_image(2).data)
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    return folder


LINES = [
    ({"image": "good.png", "question": "What is this?", "answer": "noise"}, None),
    ({"audio": "good.flac", "question": "Transcribe.", "answer": "hiss"}, None),
    ({"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "text": "Hello"}]}, None),
    ({"parts": [{"text": "See "}, {"image": "good.png"}, {"text": " here."}], "source": "pages"}, None),
    ({"text": "A sentence of plain prose that says hardly anything at all."}, None),
    ({"image": "cut.png", "question": "What?", "answer": "x"}, "image does not decode"),
    ({"audio": "none.wav", "question": "What?", "answer": "x"}, "audio does not decode"),
    ({"image": "absent.png", "answer": "x"}, "file missing"),
    ({"image": "../secret.png", "answer": "x"}, "path outside the folder"),
    ({"image": "link.png", "answer": "x"}, "path outside the folder"),
    ({"image": "/etc/passwd", "answer": "x"}, "path outside the folder"),
    ({"adio": "good.flac", "answer": "x"}, "unknown key"),
    ({"text": 3}, "bad field"),
    ({"turns": [{"role": "system", "text": "x"}]}, "bad field"),
    ({"text": "   "}, "empty"),
    ({"text": "no no"}, "too short"),
    ({"image": "good.png", "question": "What is  this?", "answer": "noise"}, "duplicate"),
    ([1, 2], "not an object"),
    ({"image": "a\0.png", "answer": "x"}, "bad field"),
    ({"image": "n" * 300 + ".png", "answer": "x"}, "file unreadable"),
    ({"image": "[/red].png", "answer": "x"}, "file missing"),
    ({"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "txet": "Hello"}]}, "unknown key"),
    ({"text": "beside", "parts": [{"text": "inside"}]}, "bad field"),
    ({"audio": "good.flac", "question": "What?"}, "bad field"),
    ({"text": "A source that is a path must not be one at all.", "source": "../../evil"}, "bad field"),
]


def test_every_invalid_record_is_counted_and_no_other_is_lost(folder, tmp_path, capsys):
    lines = [json.dumps(line) for line, _ in LINES] + [
        "{no json",
        '{"text": "a", "text": "b"}',
        "",
        '{"text": "half a surrogate \\ud800 in five more words"}',
    ]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    report = curate(folder, tmp_path / "out")["raw"]
    expected: dict[str, int] = {"not JSON": 1, "invalid text": 1, "repeated key": 1}
    for _, reason in LINES:
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
    assert {reason: sum(sources.values()) for reason, sources in report["dropped"].items()} == expected
    kept = list(read_documents(tmp_path / "out"))
    assert len(kept) == sum(report["kept"].values()) == 5
    assert report["read"] == len(kept) + sum(expected.values())
    output = " ".join(capsys.readouterr().out.split())
    assert f"manifest.jsonl:{len(LINES) + 1}" in json.dumps(report["examples"])
    assert "did you mean" in json.dumps(report["examples"])
    assert "not JSON" in output
    assert kept[3].source == "pages"
    assert [type(p).__name__ for p in kept[3].parts] == ["Text", "Image", "Text"]
    assert kept[4].language == "en"


def test_no_input_and_no_output_are_errors(tmp_path):
    with pytest.raises(ValueError, match="nothing to read"):
        list(read(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"x.parquet: not a readable Parquet file"):
        list(read(tmp_path))
    (tmp_path / "m.jsonl").write_text("nope\n")
    with pytest.raises(ValueError, match="none of its 1 documents was kept"):
        curate(tmp_path / "m.jsonl", tmp_path / "out")


def test_curating_a_folder_into_itself_is_refused(tmp_path):
    write_documents(tmp_path / "part-00000.parquet", [chat("a", "b")])
    with pytest.raises(ValueError, match="would overwrite"):
        curate(tmp_path, tmp_path)
    assert len(list(read_documents(tmp_path))) == 1


def test_parquet_rows_with_unknown_columns_are_dropped(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "prompt": ["b"]}), tmp_path / "x.parquet")
    (only,) = read(tmp_path / "x.parquet")
    assert isinstance(only, Dropped)
    assert only.record == "x.parquet:1"


def chat(question: str, answer: str, *media: Image) -> Document:
    return Document((Content("user", (*media, Text(question))), Content("model", (Text(answer),))), "i", "s")


PROSE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def overlap_with(*documents: Document) -> Callable[[Document], bool]:
    decontaminator = Decontaminator(map(inspect, documents), 8)
    return lambda document: decontaminator(inspect(document)) is not None


def prose(text: str, language: str = "und") -> Document:
    return Document((Content("document", (Text(text),)),), "i", "s", language)


def test_evaluation_items_overlap_and_generic_questions_do_not():
    overlaps = overlap_with(chat("What colour?", "red", random_image(1)), chat("Translate: March", "März"))
    assert overlaps(chat("What colour?", "red", random_image(1)))
    assert overlaps(chat("translate:  march", "märz"))
    assert not overlaps(chat("What colour?", "red", random_image(2)))
    assert not overlaps(chat("What colour?", "blue", random_image(1)))
    overlaps = overlap_with(prose(PROSE))
    assert overlaps(prose("He counted: " + PROSE[8:60] + " and stopped."))
    assert not overlaps(prose(PROSE[:20] + " apples"))


def test_filters_keep_valid_documents():
    code = Document((Content("document", (Text("x = [(0, 1), (2, 3)]\n" * 9),)),), "c", "code")
    assert inspect(code).reason is None
    assert quality(code, 5) is None
    assert quality(Document((Content("document", (Text("今天天气很好，我们去公园散步。"),)),), "z", "text"), 5) is None
    repeated = Document((Content("document", (Text("buy now\n" * 30),)),), "r", "text")
    assert quality(repeated, 5)
    deduplicator = Deduplicator()

    def repeats(document: Document) -> bool:
        return deduplicator(inspect(document)) is not None

    assert not repeats(chat("a", "b", random_image(1)))
    assert not repeats(chat("a", "b", random_image(2)))
    assert repeats(chat("a ", "b", random_image(1)))


def test_train_is_decontaminated_and_a_blocked_document_is_counted(tmp_path):
    raw = tmp_path / "raw"
    write_documents(raw / "test.parquet", [chat("Say hello", "hello")])
    write_documents(
        raw / "train.parquet", [chat("Say hello", "hello"), chat("Say bye", "bye"), chat("Say a bad word", "…")]
    )
    reports = curate(raw, tmp_path / "out", Curate(), classifier=lambda d: "a bad word" if "bad" in str(d) else None)
    assert [d.contents[-1].parts[0].text for d in read_documents(tmp_path / "out" / "train")] == ["bye"]
    assert set(reports["train"]["dropped"]) == {"in an evaluation set", "blocked"}


def test_a_full_disk_is_reported_and_leaves_no_partial_file(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    # Without this, the link below (every write fails with ENOSPC) would be removed first.
    monkeypatch.setattr("alhena.corpus.outputs.Outputs.clear", lambda self: None)
    (disk / ".curate.partial").mkdir(parents=True)
    (disk / ".curate.partial" / "part-00000.parquet.partial").symlink_to("/dev/full")
    write_documents(tmp_path / "in.parquet", [chat(str(i), "x", random_image(i, 128, 128)) for i in range(20)])
    with pytest.raises(OSError, match="is full"):
        curate(tmp_path / "in.parquet", disk)
    assert not list(disk.iterdir())
