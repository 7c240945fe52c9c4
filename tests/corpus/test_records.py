"""Records: every supported form is read; all others are dropped with the name of the field."""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alhena.content import Audio, Document, Image, Text
from alhena.corpus.curate import curate
from alhena.corpus.readers import Dropped, read
from alhena.documents import SCHEMA, to_row
from tests.conftest import random_audio, random_image
from tests.corpus.test_curate import chat

PICTURE, SOUND = random_image(1).data, random_audio(1, 0.3).data
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def one(folder: Path, line: Any) -> Document | Dropped:
    (folder / "manifest.jsonl").write_text(line if isinstance(line, str) else json.dumps(line))
    (only,) = read(folder)
    return only


def shape(document: Document | Dropped) -> list[tuple[str, list[str | type]]]:
    """Roles, with their texts and kinds of media."""
    assert isinstance(document, Document), document
    return [(c.role, [p.text if isinstance(p, Text) else type(p) for p in c.parts]) for c in document.contents]


MESSAGES = [
    {"role": "system", "content": "Be brief.", "tool_calls": None},
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": DATA_URI, "detail": None}}]},
    {"role": "assistant", "content": "Noise.", "tool_calls": None},
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "flac"}}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Hiss."}]},
]  # fmt: skip


def test_messages_in_the_format_of_openai_are_read(tmp_path):
    document = one(tmp_path, {"messages": MESSAGES, "id": 7, "language": None})
    assert shape(document) == [
        ("user", ["Be brief.", "\n", "What is it?", Image]),
        ("model", ["Noise."]),
        ("user", [Audio]),
        ("model", ["Hiss."]),
    ]
    assert isinstance(document, Document)
    assert (document.id, document.language) == ("7", "und")


def test_null_values_are_absent(tmp_path):
    line = {
        "id": 3,
        "image": None,
        "audio": None,
        "text": "Hello there.",
        "language": None,
        "facts": None,
        "source": None,
    }
    assert shape(one(tmp_path, line)) == [("document", ["Hello there."])]
    assert shape(one(tmp_path, {"image": DATA_URI, "answer": "noise"})) == [("user", [Image]), ("model", ["noise"])]


@pytest.mark.parametrize(
    ("line", "reason", "named"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}]}, "URL not fetched", "https://a.b/c.png"),
        ({"image": "http://a.b/c.png", "answer": "x"}, "URL not fetched", "save the file"),
        ({"image": "file:///etc/passwd.png", "answer": "x"}, "URL not fetched", "file:///etc"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "bad field", "'tool'"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "unknown key", "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "bad field", "image"),
        ({"messages": [{"role": "user", "content": "a", "text": "b"}]}, "bad field", "exactly one"),
        ({"messages": [], "text": "beside"}, "bad field", "messages"),
        ({"turns": [{"role": "user", "text": "a"}], "answer": "b"}, "bad field", "answer"),
        ({"turns": [{"role": "system", "text": "a"}]}, "bad field", "system turn"),
        ({"image": "data:image/png,plain", "answer": "x"}, "bad field", "base64"),
        ({"image": "data:audio/wav;base64,AAAA", "answer": "x"}, "bad field", "audio/wav"),
        ({"image": {"bytes": "not bytes", "path": None}, "answer": "x"}, "bad field", "image"),
        ({"text": "a", "id": [1]}, "bad field", '"id"'),
        ({"text": "a", "id": True}, "bad field", '"id"'),
        ({"text": "a", "language": 3}, "bad field", '"language"'),
        ({"text": "a", "id": "x\ud83d"}, "bad field", '"id"'),
        ({"text": "a", "language": "\udc00"}, "bad field", '"language"'),
        ({"text": "a", "facts": {"a": "\ud800"}}, "bad field", '"facts"'),
        ({"text": "a", "facts": [1]}, "bad field", '"facts"'),
        ('{"text": "a", "facts": {"a": NaN}}', "not JSON", "NaN"),
        ('{"text": "a", "facts": {"a": 1e999}}', "bad field", '"facts"'),
        ('{"text": "a", "facts": ' + '{"a":' * 100_000 + "}", "not JSON", ""),
        ('{"id": ' + "9" * 5000 + ', "text": "a"}', "not JSON", ""),
        ({"text": "a", "x" * 5000: 1}, "unknown key", "known keys are"),
    ],
)  # fmt: skip
def test_the_field_of_an_invalid_record_is_named(tmp_path, line, reason, named):
    dropped = one(tmp_path, line)
    assert isinstance(dropped, Dropped), dropped
    assert dropped.reason == reason
    assert named in dropped.detail
    assert len(dropped.detail) < 400


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_names_with_accents_are_found_in_either_form(tmp_path, stored, named):
    folder = tmp_path / unicodedata.normalize(stored, "Bücher")
    folder.mkdir()
    (folder / unicodedata.normalize(stored, "für Zoë.png")).write_bytes(PICTURE)
    name = unicodedata.normalize(named, "Bücher/für Zoë.png")
    assert shape(one(tmp_path, {"image": name, "answer": "noise"})) == [("user", [Image]), ("model", ["noise"])]


def test_parquet_of_hugging_face_is_read_as_manifest_lines(tmp_path):
    (tmp_path / "b.flac").write_bytes(SOUND)
    rows = [
        {"image": {"bytes": PICTURE, "path": "a.png"}, "audio": None, "text": "A picture.", "facts": '{"n": 1}'},
        {"image": None, "audio": {"bytes": None, "path": "b.flac"}, "text": "A sound.", "facts": None},
        {"image": None, "audio": None, "text": "Only words.", "facts": None},
        {"image": None, "audio": {"bytes": None, "path": "/root/b.flac"}, "text": "lost", "facts": None},
        {"image": None, "audio": None, "text": "lost", "facts": "[1]"},
        {"image": None, "audio": None, "text": "lost", "facts": "no JSON"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    *good, outside, list_, no_json = read(tmp_path / "x.parquet")
    assert [shape(document) for document in good] == [
        [("document", [Image, "A picture."])],
        [("document", [Audio, "A sound."])],
        [("document", ["Only words."])],
    ]
    assert isinstance(good[0], Document) and good[0].facts == {"n": 1} and good[0].id == "x.parquet:1"
    assert [type(item) for item in (outside, list_, no_json)] == [Dropped] * 3


def test_messages_and_plain_bytes_in_parquet_are_read_and_other_columns_are_named(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "id": 4}]), tmp_path / "m.parquet")
    (document,) = read(tmp_path / "m.parquet")
    assert shape(document) == [("user", ["Hi"]), ("model", ["Hello"])]
    pq.write_table(pa.Table.from_pylist([{"image": PICTURE, "answer": "noise"}]), tmp_path / "b.parquet")
    (document,) = read(tmp_path / "b.parquet")
    assert shape(document) == [("user", [Image]), ("model", ["noise"])]
    pq.write_table(pa.Table.from_pylist([{"text": "a", "label": 3}]), tmp_path / "c.parquet")
    (dropped,) = read(tmp_path / "c.parquet")
    assert isinstance(dropped, Dropped) and "'label'" in dropped.detail


@pytest.mark.parametrize(
    "change",
    [
        {"facts": "[1, 2]"},
        {"facts": "no JSON"},
        {"facts": '{"a": ' * 100_000},
        {"contents": None},
        {"contents": [{"role": "narrator", "parts": []}]},
        {"contents": [{"role": "user", "parts": [{"kind": "image", "text": None, "mime": None, "data": None}]}]},
        {"contents": [None]},
        {"source": "../x"},
        {"id": None},
    ],
)
def test_rows_of_our_schema_with_wrong_values_are_dropped(tmp_path, change):
    rows = [to_row(chat("Hi", "Hello")), {**to_row(chat("Hi", "Hello")), **change}]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "x.parquet")
    good, bad = read(tmp_path / "x.parquet")
    assert isinstance(good, Document)
    assert isinstance(bad, Dropped) and bad.record == "x.parquet:2"


def test_a_column_that_the_schema_does_not_have_is_named(tmp_path):
    rows = [{**to_row(chat("Hi", "Hello")), "score": score} for score in (None, 3)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA.append(pa.field("score", pa.int64()))), tmp_path / "x.parquet")
    good, bad = read(tmp_path / "x.parquet")
    assert isinstance(good, Document)
    assert isinstance(bad, Dropped) and "'score'" in bad.detail


def test_records_beside_those_that_are_read_are_named(tmp_path):
    line = json.dumps({"text": "A sentence of plain prose that says hardly anything at all."})
    (tmp_path / "manifest.jsonl").write_text(line)
    (tmp_path / "more.jsonl").write_text(line)
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "more.parquet")
    report = curate(tmp_path, tmp_path.parent / "out")[tmp_path.name]
    assert report["kept"] == {"mine": 1}
    assert report["dropped"] == {"file not read": {"?": 2}}
    assert "more.jsonl" in report["examples"]["file not read"][0]
    (tmp_path / "manifest.jsonl").rename(tmp_path / "train.jsonl")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"more\.jsonl.*beside the splits"):
        curate(tmp_path, tmp_path.parent / "out2")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"turns": [{"role": "user", "text": "Hi"}]}, "no model turn"),
        ({"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "text": " "}]}, "no model turn"),
        ({"question": "Hi", "answer": ""}, "no model turn"),
        ({"turns": []}, "empty"),
        ({"turns": [{"role": "user", "text": "Hi"}, {"role": "model", "audio": "s.flac"}]}, "media in a model turn"),
    ],
)
def test_chats_from_which_nothing_is_learned_are_dropped_at_curate(tmp_path, line, reason):
    (tmp_path / "s.flac").write_bytes(SOUND)
    good = {"question": "Hi", "answer": "Hello"}
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    report = curate(tmp_path, tmp_path.parent / "out")[tmp_path.name]
    assert report["kept"] == {"mine": 1}
    assert report["dropped"] == {reason: {"mine": 1}}
