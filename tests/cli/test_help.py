"""``--help``: quick, complete, and in agreement with the documentation."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest
import tyro

from alhena.cli.commands import Command
from alhena.cli.scaling import Fit, Suggest

ROOT = Path(__file__).parents[2]
COMMANDS = {command.__name__.lower(): command for command in typing.get_args(Command)}
DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def commands_in(text: str) -> list[list[str]]:
    """The words of every ``alhena …`` command line in the code spans and blocks of a page."""
    spans = re.findall(r"```sh\n(.*?)```", text, re.S)
    spans += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line for span in spans for line in re.split(r"\n|&&", span)]
    return [shlex.split(line, comments=True) for line in lines if line.strip().startswith("alhena ")]


def test_help_imports_no_array_library():
    script = "import sys; import alhena.cli.main, alhena.cli.commands; print([m for m in ('jax', 'numpy', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", [*COMMANDS.values(), Fit, Suggest], ids=lambda command: command.__name__)
def test_every_command_and_flag_is_explained(command, capsys, monkeypatch):
    assert command.__doc__
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    lines = [line.strip("│╭╰╮╯─ ") for line in capsys.readouterr().out.splitlines()]
    unexplained = [line for line in lines if re.search(r"\S  +\((default|required)", line)]
    assert not unexplained


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_commands_of_the_documentation_exist(page):
    for words in commands_in(page.read_text()):
        name, flags = words[1] if len(words) > 1 else "…", [word for word in words if word.startswith("--")]
        if name in ("…", "COMMAND"):
            continue
        assert name in COMMANDS, words
        kinds = (Fit, Suggest) if name == "scale" else (COMMANDS[name],)
        kinds = (*kinds, COMMANDS["pretrain"]) if name == "launch" else kinds
        known = {f"--{field.name.rstrip('_').replace('_', '-')}" for kind in kinds for field in fields(kind)}
        assert set(flags) <= known | {"--help", "--"}, words


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_and_files_of_the_documentation_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:alhena|benchmarks|tests|docs|recipes|deploy)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for script, arguments in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
        source = (ROOT / script).read_text().replace("-", "_")
        for flag in re.findall(r"--([\w-]+)", arguments):
            assert flag.replace("-", "_") in source, f"{script} {flag}"
