"""The tests that google-genai ships, in API mode against a server of this code: how many pass, and why each other one does not.

    python tests/clients/sdk_suite.py PYTHON --out benchmarks/results/sdk_suite.json [--folders models chats …] [--only test_get.py]

PYTHON is an interpreter with google-genai, pytest, pytest-asyncio and pytest-timeout. The model has random weights, in the
architecture of Gemma 4: it can do everything but say something sensible. ``sdk_exceptions.json`` gives a reason for each test
that fails; one that fails without a reason there is listed, and the script ends with code 1.
The suite's media are not in the package: small real files stand in for them.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alhena.files import read_json, write_json

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXCEPTIONS = HERE / "sdk_exceptions.json"
FOLDERS = ("models", "chats", "files", "caches", "batches", "interactions", "shared")
TEST_SECONDS = 30
# Of one answer: a model of random weights has no reason to end.
ANSWER_TOKENS = 200
CONTEXT = 32768
START_SECONDS = 300
# A bare page of a portable document, that of every file of the suite.
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj 3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 96 64]>>endobj\ntrailer<</Root 1 0 R>>\n"


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────


def serve(folder: Path, port: int) -> None:
    """Serves the model until interrupted, with short answers."""
    from alhena.serve.decoding import buckets
    from alhena.serve.gemini.app import Listening, serve
    from alhena.serve.gemini.server.settings import Settings
    from alhena.serve.safety import classify

    buckets.IMPORTED_OUTPUT_TOKENS = ANSWER_TOKENS
    serve(folder, Listening(port=port), Settings(any_model=True, state=folder.parent / "state", classify=classify))


def write_model(folder: Path) -> Path:
    """A model folder of Gemma 4's architecture with random weights."""
    from tests.serve.imported_models import write_imported

    return write_imported("gemma4_small", folder, CONTEXT)


@contextmanager
def running(log: Path) -> Iterator[str]:
    """The address of a server that runs in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary, log.open("w") as output:
        folder = write_model(Path(temporary))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", folder, str(port)], stdout=output, stderr=output, cwd=ROOT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server)
            yield address
        finally:
            server.terminate()
            server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/healthz").close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("the server did not start")


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────


def write_media(folder: Path) -> None:
    """Small files under the names that the suite opens."""

    from PIL import Image

    from tests.media.inputs import clip, encoded_sound, gray_frames, picture, saved, sound, tone

    image = Image.fromarray(picture(64, 96))
    files = {
        "png": (
            saved(image, "PNG"),
            "a-man-and-a-dog bridge1 checkerboard dog google google_homepage landmark1 landmark2",
        ),
        "jpg": (saved(image, "JPEG"), "dog google man scones segmentation_scribble skateboard_stop_sign"),
        "pdf": (PDF, "05530 story"),
        "mp4": (clip(gray_frames(8)), "animal pixel8"),
        "mp3": (sound(tone(), form="MP3"), "pixel"),
        "m4a": (encoded_sound(tone(), 16000, "mp4", "aac"), "pixel"),
        "wav": (sound(tone()), "voice_sample"),
        "txt": (b"Once upon a time there was a red circle.\n", "story"),
    }
    folder.mkdir(exist_ok=True)
    for suffix, (data, names) in files.items():
        for name in names.split():
            path = folder / f"{name}.{suffix}"
            if not path.exists():
                path.write_bytes(data)


@dataclass(frozen=True)
class Result:
    """One test: its name below the folder of the suite, whether it passed, and its error."""

    test: str
    passed: bool
    error: str = ""


def suite_folder(python: str) -> Path:
    """The folder of the tests in an environment."""
    code = "import google.genai as g; print(g.__path__[0])"
    return (
        Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()) / "tests"
    )


def run_suite(python: str, address: str, tests: Path, only: Path) -> list[Result]:
    """Runs the tests of a folder or a file; those that are skipped are left out."""
    environment = os.environ | {
        "SERVER_UNDER_TEST": address, "GOOGLE_API_KEY": "k", "GOOGLE_GEMINI_BASE_URL": address,
        "GOOGLE_GENAI_RUN_GEMINI_ONLY_IN_API_MODE": "1", "GOOGLE_GENAI_REPLAYS_DIRECTORY": tempfile.gettempdir(),
        "PYTHONPATH": str(HERE),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            python, "-P", "-m", "pytest", "-p", "sdk_suite_plugin", "--mode=api", "-q", f"--timeout={TEST_SECONDS}", "--tb=short",
            f"--rootdir={tests}", "-c", os.devnull, "--import-mode=importlib", "-p", "no:cacheprovider",
            "--continue-on-collection-errors", f"--junit-xml={report}", str(only),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, cwd=tests.parent, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"{only}: the suite did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return _results(report)


def _results(report: Path) -> list[Result]:
    out: dict[str, Result] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname', '')}.{case.get('name')}".removeprefix("tests.")
        error = case.find("failure") if case.find("failure") is not None else case.find("error")
        if error is not None:
            out[test] = Result(test, False, f"{error.get('message', '')}\n{error.text or ''}")
        elif case.find("skipped") is None and test not in out:
            out[test] = Result(test, True)
    return list(out.values())


# ── the count ─────────────────────────────────────────────────────────────────────────────────────────────


def reason_of(result: Result, exceptions: list[dict[str, str]]) -> tuple[str, str]:
    """Whose it is that a test fails, and why: the first of the exceptions that fits its name and its error."""
    for entry in exceptions:
        if re.search(entry.get("test", ""), result.test) and re.search(entry.get("error", ""), result.error):
            return entry["whose"], entry["reason"]
    return "ours", ""


def count(results: list[Result], exceptions: list[dict[str, str]]) -> dict[str, object]:
    """How many tests of a folder pass, and the others with their reasons."""
    failed = [(r, *reason_of(r, exceptions)) for r in results if not r.passed]
    google = sum(whose == "google" for _, whose, _ in failed)
    return {
        "passed": len(results) - len(failed), "failed": len(failed), "need_google": google,
        "failures": [
            {"test": r.test, "whose": whose, "reason": reason, "error": _last_line(r.error)} for r, whose, reason in failed
        ],
    }  # fmt: skip


def _last_line(error: str) -> str:
    return next((line[2:].strip()[:200] for line in error.splitlines() if line.startswith("E ")), error[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--only", default="", help="one file of the folder")
    parser.add_argument("--out", type=Path, default=Path("sdk_suite.json"))
    arguments = parser.parse_args()
    tests = suite_folder(arguments.python)
    write_media(tests / "data")
    exceptions = read_json(EXCEPTIONS)
    folders = read_json(arguments.out) if arguments.out.exists() else {}
    with running(arguments.out.with_suffix(".log")) as address:
        for folder in arguments.folders:
            results = run_suite(arguments.python, address, tests, tests / folder / arguments.only)
            folders[folder] = counted = count(results, exceptions)
            write_json(arguments.out, folders)
            print(folder, {k: v for k, v in counted.items() if k != "failures"}, flush=True)
    unexplained = [f["test"] for counted in folders.values() for f in counted["failures"] if not f["reason"]]
    if unexplained:
        sys.exit("without a reason in sdk_exceptions.json: " + ", ".join(unexplained))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
