"""The page in headless Chromium, over the API of a real small model; and over scripted answers for what that model cannot say."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import httpx
import pytest

from alhena.media import SAMPLE_RATE, decode_audio, decode_image
from alhena.serve.gemini.wire.fields import camel
from alhena.serve.page import page
from tests.conftest import random_image
from tests.serve.chromium import Page
from tests.serve.opened_page import DONE, MARKDOWN, ask, code, in_chromium, open_details, start
from tests.serve.scripted_api import error, event
from tests.serve.waiting import wait_for

STATIC = Path(page.__file__).parent / "static"
SOURCES = sorted(STATIC.glob("*.js"))


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_served_with_a_strict_policy(tiny_address):
    answer = httpx.get(tiny_address)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert not {"set-cookie", "access-control-allow-origin"} & set(answer.headers)
    again = httpx.get(tiny_address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    names = set(re.findall(r'(?:href|src)="(page/[^"]+)"', answer.text))
    assert {f"page/{name}" for name in ("app.js", "theme.js", "style.css", "icon.svg")} == names
    assert [httpx.get(f"{tiny_address}/{name}").status_code for name in sorted(names)] == [200] * 4


@pytest.mark.parametrize(
    ("path", "into", "status"), [("/", "document", 200), ("/", "iframe", 403), ("/v1beta/models", "document", 403)]
)
def test_a_link_of_another_site_opens_the_page_and_nothing_else(tiny_address, path, into, status):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": into}
    assert httpx.get(tiny_address + path, headers=headers).status_code == status


@pytest.mark.parametrize("name", ["missing.js", "..%2Fpage.py", "%2e%2e%2f__init__.py", "static/app.js"])
def test_other_files_are_not_found(tiny_address, name):
    answer = httpx.get(f"{tiny_address}/page/{name}")
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("file", [*SOURCES, STATIC / "index.html", STATIC / "style.css"], ids=lambda file: file.name)
def test_nothing_is_loaded_from_elsewhere_and_no_text_is_parsed_as_markup(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+|\burl\(", text) == []
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|document\.cookie| style=", text
    )
    imported = re.findall(r'from "\./([^"]+)"', text)
    assert all((STATIC / name).is_file() for name in imported)


# ── A real model ────────────────────────────────────────────────────────────────────────────────────────────────


@in_chromium
def test_a_picture_is_uploaded_a_question_streamed_and_a_picture_generated(tab, tiny_address, tmp_path):
    """The answer on the page is that of the API, and of the programs that "Get code" shows."""
    (tmp_path / "scene.png").write_bytes(random_image(1).data)
    start(tab, tiny_address)
    tab.type("#maxOutputTokens", "24")
    tab.type("#stopSequences", "no such words")
    tab.attach("#files", [tmp_path / "scene.png"])
    tab.wait("document.querySelector('#attachments img')?.naturalWidth")
    tab.type("#prompt", "What colour is the circle?")
    tab.wait("/^\\d+ .* tokens$/.test(document.getElementById('count').textContent)")
    tab.click("#send")
    tab.wait("document.querySelector('.turn.model .usage')")
    assert (
        tab.run("document.querySelector('.turn.user img').naturalWidth") == decode_image(random_image(1).data).shape[1]
    )
    assert re.fullmatch(r"\d+ tokens in · 24 out · [\d.]+ s", tab.text(".usage"))
    assert "maximum number of tokens" in tab.text(".finish")

    shown = tab.run(
        "JSON.parse(sessionStorage.getItem('alhena.chat'))[1].items.map(({ part }) => part.text ?? '').join('')"
    )
    program = code(tab, "python")
    assert run([sys.executable, "-c", program], tmp_path).strip() == shown.strip()
    if shutil.which("curl"):
        events = [json.loads(line[6:]) for line in run(["bash", "-c", code(tab, "curl")], tmp_path).splitlines() if line.startswith("data: ")]  # fmt: skip
        assert "".join(p.get("text", "") for e in events for p in e["candidates"][0]["content"]["parts"]) == shown

    tab.run("document.getElementById('modalities').value = 'IMAGE'")
    tab.type("#maxOutputTokens", "80")
    ask(tab, "Draw a red circle.")
    tab.wait("document.querySelector('.generated img')?.naturalWidth > 0")
    assert tab.run("document.querySelector('.generated a').download") == "answer.png"
    assert {url.split("/")[2] for url in tab.requested if not url.startswith("blob:")} == {tiny_address.split("/")[2]}
    assert tab.errors == []


def run(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120).stdout


@in_chromium
def test_what_the_server_refuses_is_shown_with_its_reason(tab, tiny_address):
    start(tab, tiny_address)
    open_details(tab)
    tab.type("#temperature", "9")
    ask_refused(tab, "Temperature:")
    tab.type("#temperature", "")
    tab.run("document.getElementById('json').click()")
    tab.type("#schema", "{")
    ask_refused(tab, "JSON schema: This is not JSON")
    tab.click("#reset-settings")
    ask(tab, "word " * 40_000)
    assert "400 INVALID_ARGUMENT" in tab.text(".failure") and "tokens" in tab.text(".failure")


def ask_refused(tab: Page, message: str) -> None:
    """A field that cannot be sent as it is: nothing is sent, and the field has the focus."""
    tab.type("#prompt", "Hello")
    tab.press("Enter")
    tab.wait(f"document.getElementById('notice').textContent.startsWith({json.dumps(message)})")
    assert tab.run("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert tab.run("document.querySelectorAll('.turn').length") == 0


# ── Scripted answers ────────────────────────────────────────────────────────────────────────────────────────────


@in_chromium
def test_a_function_call_is_shown_and_its_result_sent(tab, script):
    api, address = script
    call = {"functionCall": {"id": "c1", "name": "get_weather", "args": {"place": "Zürich"}}}
    api.answers = [
        [event({"text": "I need ", "thought": True}), event({"text": "the weather.", "thought": True}), event(call, finish="STOP")],
        [event({"text": "It is **mild**."}, finish="STOP")],
    ]  # fmt: skip
    start(tab, address)
    open_details(tab)
    tab.click("[data-example=functions]")
    tab.click("#thinking")
    ask(tab, "How is the weather?")
    assert tab.run("document.querySelector('.thought .prose').textContent") == "I need the weather."
    assert "get_weather" in tab.text(".turn.model") and "Zürich" in tab.text(".turn.model pre")
    tab.type(".results textarea", '{"celsius": 17}')
    tab.click(".results .primary")
    tab.wait("document.querySelectorAll('.turn.model').length === 2 && " + DONE)
    assert tab.text(".turn.model:last-child .prose strong") == "mild"
    assert tab.run("document.querySelector('.results')") is None
    first, second = api.bodies
    assert first["generationConfig"]["thinkingConfig"] == {"includeThoughts": True, "thinkingBudget": -1}
    assert first["tools"][0]["functionDeclarations"][0]["name"] == "get_weather"
    assert second["contents"][1]["parts"] == [{"text": "I need the weather.", "thought": True}, call]
    result = {"functionResponse": {"id": "c1", "name": "get_weather", "response": {"celsius": 17}}}
    assert second["contents"][2] == {"role": "user", "parts": [result]}


def canonical(value, key=""):
    """A request without what the SDK writes in another way: names in snake_case, types in capitals, URL-safe base64."""
    if isinstance(value, dict):
        return {camel(k): canonical(v, camel(k)) for k, v in value.items() if (key, k) != ("systemInstruction", "role")}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if key in ("data", "thoughtSignature"):
        return value.replace("-", "+").replace("_", "/")
    return value.lower() if key == "type" else value


@in_chromium
def test_the_programs_send_what_the_page_sends(tab, script, tmp_path):
    """Every setting; texts that a shell or a string literal could mistake for their end; bytes, calls and results."""
    api, address = script
    arguments = {"place": 'Zürich "x"\n😀', "list": [1, 2.5, None, True, {"long": "c" * 80}]}
    call = {"functionCall": {"id": "c1", "name": "get_weather", "args": arguments}, "thoughtSignature": "c2ln++//"}
    fine = [event({"text": "Fine 😀"}, finish="STOP")]
    api.answers = [[event({"text": "Hm.", "thought": True}), event({"text": "I call:"}), event(call, finish="STOP")], *4 * [fine]]  # fmt: skip
    (tmp_path / "scene.png").write_bytes(random_image(1).data)
    start(tab, address)
    open_details(tab)
    tab.click("[data-example=functions]")
    tab.click("[data-example=schema]")
    tab.click("#thinking")
    for name, text in (("system", 'Be "brief"\nand $HOME `x`'), ("stopSequences", "END\nSTOP"), ("temperature", "0.3"), ("topP", "0.9"), ("topK", "5"), ("seed", "7")):  # fmt: skip
        tab.type(f"#{name}", text)
    for name, value in (("mode", "ANY"), ("modalities", "TEXT,IMAGE"), ("aspect", "16:9")):
        tab.run(f"document.getElementById('{name}').value = '{value}'")
    tab.attach("#files", [tmp_path / "scene.png"])
    tab.wait("document.querySelector('#attachments img')")
    ask(tab, "EOF\nEND\nWeather 'in' Zürich? \\ $PATH")
    tab.type(".results textarea", '[1, "zwei"]')
    tab.click(".results .primary")
    tab.wait("document.querySelectorAll('.turn.model').length === 2 && " + DONE)
    sent = api.bodies[-1]
    assert run([sys.executable, "-c", code(tab, "python")], tmp_path).strip() == "Fine 😀"
    assert canonical(api.bodies[-1]) == canonical(sent) and len(api.bodies) == 3
    if shutil.which("curl"):
        run(["bash", "-c", code(tab, "curl")], tmp_path)
        assert api.bodies[-1] == sent and len(api.bodies) == 4
    assert tab.errors == []


@in_chromium
def test_what_a_person_uses_stays_while_an_answer_is_drawn(tab, script):
    """Neither the last frame of an answer, which may come after its end, nor one that grows replaces or moves what did not change."""
    api, address = script
    call = {"functionCall": {"name": "f", "args": {}}}
    api.answers = [[event({"text": "One"}), event(call, finish="STOP")], [event({"text": "Two"}), 30.0]]
    start(tab, address)
    nodes = "[...document.querySelectorAll('#turns *')]"
    tab.run("window.late = []; window.frame = requestAnimationFrame; window.requestAnimationFrame = (work) => late.push(work)")  # fmt: skip
    ask(tab, "Hello")
    tab.type(".results textarea", "17")
    assert tab.run(f"window.before = {nodes}; window.requestAnimationFrame = frame; late.map((work) => work(0)).length")
    assert tab.run(f"{nodes}.length === before.length && {nodes}.every((node, i) => node === before[i])")
    assert tab.run("document.activeElement.matches('.results textarea') && document.activeElement.value") == "17"
    tab.run("window.before = [...document.querySelectorAll('.turn.user *')]")
    tab.click(".results .primary")
    tab.wait("document.querySelector('.turn.model:last-child .prose')?.textContent === 'Two'")
    assert tab.run("before.length > 5 && before.every((node) => node.isConnected)")
    tab.click("#stop")
    assert tab.errors == []


@in_chromium
def test_stop_retry_and_edit(tab, script):
    api, address = script
    api.answers = [[event({"text": "O"}), event({"text": "ne"}), 30.0], [event({"text": "Two"}, finish="STOP")], [event({"text": "Two again"}, finish="STOP")], [event({"text": "Three"}, finish="STOP")]]  # fmt: skip
    start(tab, address)
    tab.type("#prompt", "Count")
    tab.press("Enter")
    tab.wait("document.querySelector('.prose')?.textContent === 'One'")
    tab.click("#stop")
    tab.wait("document.querySelector('.finish')?.textContent === 'You stopped this answer.'")
    wait_for(lambda: api.cancelled == 1)
    tab.click(".turn.model [aria-label='Try again']")
    tab.wait("document.querySelector('.prose')?.textContent === 'Two'")
    tab.wait(DONE)
    tab.type("#seed", "5")
    tab.click(".turn.model [aria-label='Try again']")
    tab.wait("document.querySelector('.prose')?.textContent === 'Two again'")
    tab.wait(DONE)
    tab.click(".turn.user [aria-label='Edit']")
    tab.type(".turn.user textarea", "Count on")
    tab.click(".turn.user .primary")
    tab.wait("document.querySelector('.prose')?.textContent === 'Three'")
    assert tab.run("document.querySelectorAll('.turn').length") == 2
    texts = [[part["text"] for turn in body["contents"] for part in turn["parts"]] for body in api.bodies]
    assert texts == [["Count"], ["Count"], ["Count"], ["Count on"]]
    seeds = [body["generationConfig"].get("seed") for body in api.bodies]
    assert seeds[0] is None and seeds[1] > 5 and seeds[2:] == [5, 5]
    # The chat survives a reload of the page.
    tab.open(address)
    assert tab.wait("document.querySelector('.prose')?.textContent") == "Three"
    assert tab.errors == []


@in_chromium
def test_errors_before_and_within_a_stream_and_a_demanded_key(tab, script):
    api, address = script
    api.answers = [error(429, "RESOURCE_EXHAUSTED", "too many"), [event({"text": "Half"}), error(500, "INTERNAL", "broken")], [event({"text": "Fine"}, finish="STOP")]]  # fmt: skip
    start(tab, address)
    ask(tab, "Hello")
    assert "too many\n\n429 RESOURCE_EXHAUSTED" in tab.text(".failure")
    tab.click(".failure button")
    tab.wait("document.querySelector('.prose')?.textContent === 'Half'")
    tab.wait("document.querySelector('.failure')?.textContent.includes('500 INTERNAL')")
    api.key = "secret"
    tab.click(".failure button")
    tab.wait("document.activeElement.id === 'key'")
    tab.type("#key", "wrong")
    tab.press("Enter")
    tab.wait("document.getElementById('notice').textContent.startsWith('The server refuses this API key')")
    tab.type("#key", "secret")
    tab.press("Enter")
    tab.wait("document.getElementById('notice').hidden")
    assert "GEMINI_API_KEY" in code(tab, "python") and "secret" not in code(tab, "curl")
    tab.click(".failure button")
    tab.wait("document.querySelector('.prose')?.textContent === 'Fine'")


@in_chromium
def test_markdown_becomes_nodes_and_markup_stays_text(tab, script):
    api, address = script
    # So long that a parser whose time is quadratic does not end, and with more nodes than a call has arguments.
    hostile = "*a `b _c " * 120_000
    api.answers = [[event({"text": MARKDOWN[i : i + 3]}) for i in range(0, len(MARKDOWN), 3)] + [event({"text": ""}, finish="STOP")], [event({"text": hostile}, finish="STOP")]]  # fmt: skip
    start(tab, address)
    ask(tab, "Write")
    found = tab.run("[...document.querySelectorAll('.prose *')].map((node) => node.localName).join(' ')")
    assert found == (
        "h4 ol li strong code ul li em li blockquote p div table thead tr th th tbody tr td td"
        " div div span button svg use span pre code p"
    )
    assert tab.text(".prose td:last-child") == "<b>2</b>"
    assert tab.text(".prose pre") == 'if a < b: print("<script>")'
    assert tab.text(".prose > p") == MARKDOWN.splitlines()[-1]
    assert "2*3*4 and snake_case_name" in tab.text(".prose ol")
    ask(tab, "Write more")
    api.answers = [[event({"text": '{"a": '}), event({"text": '"*b*"}'}, finish="STOP")]]
    tab.run("document.getElementById('json').click()")
    ask(tab, "As JSON")
    assert tab.text(".turn:last-child pre") == '{"a": "*b*"}'
    assert tab.errors == []


@in_chromium
def test_the_microphone_records_wav_of_16_khz(tab, script, tmp_path):
    api, address = script
    api.answers = [[event({"text": "Heard."}, finish="STOP")]]
    (tmp_path / "notes.txt").write_text("first line")
    (tmp_path / "blob.bin").write_bytes(b"\0\1\2\xff")
    start(tab, address)
    tab.click("#microphone")
    tab.wait("document.getElementById('recording').textContent === '0:01'")
    tab.click("#microphone")
    tab.wait("document.getElementById('attachments').innerText.includes('recording.wav')")
    tab.attach("#files", [tmp_path / "notes.txt", tmp_path / "blob.bin"])
    tab.wait("document.getElementById('notice').textContent.includes('blob.bin is neither')")
    ask(tab, "Transcribe.")
    sound, text, question = api.bodies[0]["contents"][0]["parts"]
    assert sound["inlineData"]["mimeType"] == "audio/wav"
    recording = base64.b64decode(sound["inlineData"]["data"])
    with wave.open(io.BytesIO(recording)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (SAMPLE_RATE, 1, 2)
        assert file.getnframes() > 0.8 * SAMPLE_RATE
    assert abs(decode_audio(recording)).max() > 0.01
    assert "first line" in text["text"] and question == {"text": "Transcribe."}
