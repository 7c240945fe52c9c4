"""What the tests of the page do with it in headless Chromium: open it, ask, read the programs that it shows."""

from __future__ import annotations

import pytest

from tests.serve.chromium import CHROMIUM, Page

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not tested")
# No answer is being generated.
DONE = "!document.getElementById('send').hidden && document.querySelectorAll('.turn.model').length"
MARKDOWN = """# Title
1. one **bold** and `code_`
   - *inner*
2. two, 2*3*4 and snake_case_name

> quote

| a | b |
|---|---|
| 1 | <b>2</b> |

```python
if a < b: print("<script>")
```
<img src=x onerror=alert(1)> [link](javascript:alert(1))"""


def start(tab: Page, address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    """Opens the page as on a first visit."""
    tab.emulate(width, height, scheme)
    tab.errors.clear()
    tab.requested.clear()
    tab.open(address)
    tab.run("sessionStorage.clear(); localStorage.clear()")
    tab.open(address)
    tab.wait("document.getElementById('model').value")


def ask(tab: Page, text: str) -> None:
    tab.type("#prompt", text)
    tab.press("Enter")
    tab.wait("document.getElementById('prompt').value === ''")
    tab.wait(DONE)


def code(tab: Page, language: str) -> str:
    tab.click("#code")
    tab.click(f"#tab-{language}")
    text = tab.run("document.getElementById('code-text').textContent")
    tab.press("Escape")
    return text


def open_details(tab: Page) -> None:
    """Opens each group of the settings."""
    tab.run("for (const details of document.querySelectorAll('details')) details.open = true")
