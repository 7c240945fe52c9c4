"""Documents of every kind of part are stored and read back; consumers refuse by name what they do not read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alhena.content import Audio, Content, Document, Image, Text, Thought, ToolCall, ToolResult, Video
from alhena.corpus.filters import content_hash, inspect
from alhena.documents import SCHEMA, from_row, read_documents, size_of, to_row, write_documents
from alhena.evaluate.card.examples import pieces_of
from alhena.serve.gemini.wire.parts import write_part
from tests.conftest import random_image

TOOLS = Document(
    (
        Content("system", (Text("Be brief."),)),
        Content("user", (Text("What is there?"), Audio(b"a"), Video(b"v", "video/webm"))),
        Content("model", (Thought("Look."), ToolCall("camera", {"zoom": 2, "of": ["a", None, {"b": True}]}, "c1"))),
        Content("tool", (ToolResult("camera", {"ok": True}, (Image(b"i", "image/jpeg"), Audio(b"x")), "c1"), Image(b"j"))),
        Content("model", (ToolResult("none", {}), Text("A dog."))),
    ),
    "d1",
    "tools",
)  # fmt: skip


def test_every_kind_of_part_is_stored_and_read_back(tmp_path):
    write_documents(tmp_path / "a.parquet", [TOOLS])
    assert list(read_documents(tmp_path / "a.parquet")) == [TOOLS]
    assert pq.read_schema(tmp_path / "a.parquet") == SCHEMA


def test_files_of_text_and_media_alone_are_as_before(tmp_path):
    part = {"kind": "image", "text": None, "mime": "image/png", "data": b"1"}
    row = {"id": "d", "source": "s", "language": "en", "facts": "{}", "contents": [{"role": "user", "parts": [part]}]}
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), tmp_path / "a.parquet")
    document = Document((Content("user", (Image(b"1"),)),), "d", "s", "en")
    assert list(read_documents(tmp_path / "a.parquet")) == [document] and to_row(document) == row


@pytest.mark.parametrize(
    "text",
    ['[]', '{"name": "f"}', '{"name": 1, "response": {}, "id": null, "parts": 0}', '{"name": "f", "response": {}, "id": null, "parts": true}',
     '{"name": "f", "response": {}, "id": null, "parts": 2}', '{"name": "f", "response": {}, "id": null, "parts": -1}', '{'],
)  # fmt: skip
def test_a_malformed_tool_result_is_refused(text):
    row = to_row(Document((Content("tool", (ToolResult("f", {}, (Image(b"i"),)),)),), "d", "s"))
    row["contents"][0]["parts"][0]["text"] = text
    with pytest.raises(ValueError):
        from_row(row)


def test_the_size_of_a_document_bounds_its_bytes():
    assert size_of(TOOLS) >= sum(len(str(row)) for c in to_row(TOOLS)["contents"] for row in c["parts"]) // 4
    result = Document((Content("tool", (ToolResult("f", {}, (Image(b"i" * 5000),)),)),), "d", "s")
    assert size_of(result) > 5000


def test_curate_hashes_the_media_of_tool_results_and_the_report_shows_every_kind_of_part():
    image, other = random_image(0), random_image(1)
    result = ToolResult("f", {"a": 1}, (image,))
    turns = [(Thought("t"), ToolCall("f", {"b": 2})), (result, image)]
    first = inspect(Document((Content("model", turns[0]), Content("tool", turns[1])), "d", "s"))
    assert first.reason is None and first.media == (first.media[0],) * 2
    changed = [
        inspect(Document((Content("model", model), Content("tool", tool)), "d", "s", facts=facts))
        for model, tool, facts in (
            ((Thought("t"), ToolCall("f", {"b": 3})), turns[1], {}),
            (turns[0], (ToolResult("f", {"a": 2}, (image,)), image), {}),
            (turns[0], (ToolResult("f", {"a": 1}, (other,)), image), {}),
            (*turns, {"tools": [{"name": "f"}]}),
        )
    ]
    assert len({content_hash(inspected) for inspected in (first, *changed)}) == 5
    broken = inspect(Document((Content("tool", (ToolResult("f", {}, (Image(b"x"),)),)),), "d", "s")).reason
    assert broken is not None and broken[0] == "image does not decode"
    shown = [piece for part in (*turns[0], result) for piece in pieces_of(part)]
    assert [piece.kind for piece in shown] == ["text", "text", "text", "image"]
    assert [piece.text for piece in shown[:3]] == ["t", 'f{"b": 2}', 'f{"a": 1}']


def test_an_answer_with_the_result_of_a_tool_is_not_written():
    with pytest.raises(ValueError, match="a result of the tool f"):
        write_part(ToolResult("f", {}))
