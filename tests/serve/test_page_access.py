"""The page for everyone: names of its controls, contrast of its texts, the keyboard, a narrow screen."""

from __future__ import annotations

import pytest

from tests.serve.opened_page import MARKDOWN, ask, in_chromium, open_details, start
from tests.serve.scripted_api import error, event

# Contrast of each text that can be seen with the color behind it; colors are drawn on a canvas, which resolves every notation.
CONTRAST = """(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
  const light = (color) => { const [r, g, b] = rgba(color).slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => { for (; node; node = node.parentElement) { const color = getComputedStyle(node).backgroundColor; if (rgba(color)[3] > 250) return color; } return "white"; };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || node.placeholder;
    if (!own || !node.checkVisibility({ opacityProperty: true }) || node.closest(":disabled, option, .visually-hidden, .skip, noscript")) continue;
    const [a, b] = [light(getComputedStyle(node, node.placeholder ? "::placeholder" : null).color), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${node.className || node.id || node.localName}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return bad;
})()"""


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_control_has_a_name_and_each_text_enough_contrast(tab, script, scheme):
    api, address = script
    api.answers = [[event({"text": MARKDOWN}, finish="STOP")], error(400, "INVALID_ARGUMENT", "no"), [event({"functionCall": {"name": "f", "args": {}}}, finish="STOP")]]  # fmt: skip
    start(tab, address, scheme=scheme)
    open_details(tab)
    for text in ("one", "two", "three"):
        ask(tab, text)
    tab.type("#schema", "[")
    assert tab.run(CONTRAST) == []
    assert tab.run("getComputedStyle(document.body).colorScheme") == "light dark"
    tree = tab.send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "combobox", "spinbutton", "slider", "switch", "tab", "link", "image"}
    nodes = [node for node in tree if not node["ignored"] and node.get("role", {}).get("value") in controls]
    nameless = [n for n in nodes if not n["name"].get("value", "").strip()]
    assert len(nodes) > 30 and nameless == []
    tab.click("#theme")
    tab.wait(f"getComputedStyle(document.documentElement).colorScheme === '{'dark' if scheme == 'light' else 'light'}'")
    assert tab.run(CONTRAST) == []


@in_chromium
def test_keyboard_and_a_narrow_screen(tab, script):
    api, address = script
    api.answers = [
        [event({"text": MARKDOWN + "\n\n```\n" + "wide " * 100 + "\n```\n\n" + "longword" * 40}, finish="STOP")]
    ]
    start(tab, address, width=320, height=640)
    tab.run("document.activeElement.blur()")
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "prompt"
    ask(tab, "longword" * 40)
    assert tab.run("document.getElementById('status').textContent").startswith("Answer: # Title")
    assert tab.run("document.documentElement.scrollWidth") <= 320
    assert tab.run("document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth")
    tab.click("#panel")
    assert tab.run("document.activeElement.id") == "close-settings" and tab.run("document.querySelector('main').inert")
    tab.press("Escape")
    assert tab.run("document.activeElement.id") == "panel" and not tab.run("document.querySelector('main').inert")
