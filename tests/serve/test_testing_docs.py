"""The examples of docs/testing-your-app.md run as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from alhena.testing.__main__ import read_script
from alhena.testing.script import Script

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "testing-your-app.md").read_text()


def install_plugin(folder: Path) -> None:
    """The metadata by which pytest finds the plugin of an installed package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / "alhena_plugin-1.dist-info"
    metadata.mkdir()
    entry = "\n".join(f"{name} = {value}" for name, value in project["entry-points"]["pytest11"].items())
    (metadata / "entry_points.txt").write_text(f"[pytest11]\n{entry}\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: alhena_plugin\nVersion: 1\n")


def run(folder: Path, *command: str) -> str:
    """The output of a command, without the variables that a developer may have set."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("GOOGLE_", "GEMINI_"))}
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment | {"PYTHONPATH": paths}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ).stdout  # fmt: skip


def test_the_examples_run_with_the_plugin_of_the_installed_package(tmp_path):
    install_plugin(tmp_path)
    for name, code in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, re.DOTALL):
        (tmp_path / name).write_text(code)
    out = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_weather.py")
    assert f"{TEXT.count('def test_')} passed" in out, out
    assert run(tmp_path, "script.py").strip().endswith("Hello!")


def test_the_script_in_the_guide_is_valid(tmp_path):
    (text,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "replies.json").write_text(text)
    script = Script()
    read_script(script, tmp_path / "replies.json")
    assert script.unused == len([rule for rule in json.loads(text) if "when" not in rule and "otherwise" not in rule])
