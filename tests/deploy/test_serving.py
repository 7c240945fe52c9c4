"""The files that run a server are consistent with it: flags, paths and limits exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

from alhena.cli.serving import Serve
from alhena.serve.gemini.server.connections import MAX_BODY_BYTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FLAGS = {"--" + field.name.replace("_", "-") for field in fields(Serve)}


def flags(words: list[str]) -> dict[str, str]:
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_the_image_is_not_root_and_checks_its_health():
    lines = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    last = {line.split()[0]: line.partition(" ")[2] for line in lines if line and not line.startswith("#")}
    assert last["USER"] != "root" and int(last["USER"]) > 0
    assert "/healthz" in last["HEALTHCHECK"] and last["STOPSIGNAL"] == "SIGTERM"
    command = json.loads(last["ENTRYPOINT"])
    assert command[:2] == ["alhena", "serve"] and flags(command).keys() <= FLAGS
    assert flags(command)["--state"] == last["VOLUME"]
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert not [line for line in lines if line.startswith("ADD")]
    # The kernels are built, with the compiler that this needs.
    assert "setup.py" in copied and any("g++" in line for line in lines if line.startswith("RUN"))


def test_paths_into_a_run_are_those_of_its_folders():
    """What the image mounts, and every command that names a file of a run."""
    known = "raw curated tokens models report benchmarks image_tokenizer pretrain tune compress".split()
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(path for path in DEPLOY.iterdir() if path.is_file())]
    named = {
        (path.name, *match) for path in files for match in re.findall(r"\bruns/\w+/(\w+)(?:/(\w+))?", path.read_text())
    }
    assert named and not [name for name in named if name[1] not in known]
    assert ("Dockerfile", "models", "assistant") in named


def test_the_unit_is_hardened_and_waits_for_the_drain():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "alhena.service")
    service = parser["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[1] == "serve" and flags(words).keys() <= FLAGS
    assert float(service["TimeoutStopSec"]) > float(flags(words)["--drain-seconds"])
    assert flags(words)["--state"] == f"/var/lib/{service['StateDirectory']}"
    expected = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": ""}
    assert {name: service[name] for name in expected} == expected


def test_the_proxy_has_the_limits_of_the_server():
    text = (DEPLOY / "nginx.conf").read_text()
    assert f"client_max_body_size {MAX_BODY_BYTES >> 20}m;" in text
    assert "proxy_buffering off;" in text and text.count("{") == text.count("}")
