"""The terminal chat: paths in a line, images in the history, lines that cannot be read."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from alhena.content import Content, Image, Text
from alhena.media import decode_image
from alhena.serve.chat import Chat, chat, read_line
from alhena.serve.decoding.sampling.sampler import Sampling
from tests.conftest import random_image


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.png").write_bytes(random_image(1).data)
    (tmp_path / "my scene.PNG").write_bytes(random_image(2).data)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "images", "text"),
    [
        ("What shape is in scene.png?", [1], "What shape is in ?"),
        ("scene.png", [1], None),
        ("What is ./scene.png, exactly?", [1], "What is , exactly?"),
        ("What's in scene.png?", [1], "What's in ?"),
        ("What's scene.png's colour?", [1], "What's 's colour?"),
        ("Look (scene.png)...", [1], "Look ()..."),
        (r"What is my\ scene.PNG?", [2], "What is ?"),
        ("What is 'my scene.PNG'?", [2], "What is ?"),
        ("What is \"my scene.PNG\" and 'scene.png'?", [2, 1], "What is and ?"),
        ("“my scene.PNG” isn't 'scene.png', is it?", [2, 1], "isn't , is it?"),
        ("Say 'red' of scene.png", [1], "Say 'red' of"),
        ("The dogs' toys 'in scene.png' aren't red", [1], "The dogs' toys 'in ' aren't red"),
        ("How large is a .png file? And/or what? e.g. 3.5", [], "How large is a .png file? And/or what? e.g. 3.5"),
        ("a \\ and a \0 and ~nobody/x", [], "a \\ and a \0 and ~nobody/x"),
    ],
)
def test_paths_in_a_line_are_read(here, line, images, text):
    parts = [Image(random_image(seed).data) for seed in images]
    assert read_line(line) == (*parts, *([Text(text)] if text else []))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("gone.png what?", "gone.png: there is no such file"),
        ("What is in gone.JPG?", "gone.JPG: there is no such file"),
        ("What is 'no such.wav'?", "no such.wav: there is no such file"),
        ("What is http://example.org/x.png", "there is no such file"),
        ("What is my scene.txt", "scene.txt: this kind of file cannot be read"),
        ("What is this? cut.png", "cut.png: the image cannot be decoded"),
        ("Transcribe none.wav.", "none.wav: the audio is empty"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error(here, line, error):
    (here / "scene.txt").write_text("words")
    (here / "cut.png").write_bytes(random_image(1).data[:40])
    (here / "none.wav").touch()
    with pytest.raises(ValueError, match=error):
        read_line(line)


def session(engine, folder):
    return Chat(engine, Console(), Sampling(max_tokens=80, image_first=True), folder)


def test_chat_continues_after_images_and_bad_lines(tiny_engine, here, capsys, monkeypatch):
    lines = "Draw a red circle.\nWhat is gone.png?\n[/red] [bold x.png\n\ud800\nAnother.\n/reset\n/quit\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    session(tiny_engine, here).run(here)
    out = capsys.readouterr().out
    assert out.count("saved as") == 2
    assert out.count("there is no such file") == 2
    assert decode_image((here / "alhena-002.png").read_bytes()).ndim == 3


def test_an_answer_is_printed_and_its_image_saved(tiny_engine, here, capsys):
    session(tiny_engine, here).stream_answer([Content("user", (Text("Draw a red circle."),))])
    assert decode_image((here / "alhena-001.png").read_bytes()).ndim == 3
    assert "saved as" in capsys.readouterr().out


def test_what_the_model_cannot_do_is_an_error(tiny_folder):
    with pytest.raises(ValueError, match="does not think"):
        chat(tiny_folder, "Draw a red circle.", thinking=True)
