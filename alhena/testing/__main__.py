"""An offline Gemini API for applications in any language:      python -m alhena.testing --port 8080 --script replies.json

The script is a JSON list; its parts are strings, or objects in the format of the API:

    [{"when": "weather", "times": 1, "reply": [{"functionCall": {"name": "get_weather", "args": {"city": "Bern"}}}]},
     {"fail": 429, "retry_after": 1},
     {"block": "SAFETY", "when": "bomb"},
     {"otherwise": ["I do not know."]}]
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path
from typing import Any

from alhena.testing import gemini_server
from alhena.testing.script import Script, wire_parts

KINDS = {
    "reply": ("when", "times", "finish", "delay", "break_after"),
    "fail": ("when", "times", "message", "call", "retry_after"),
    "block": ("when", "times"),
    "otherwise": (),
}


def add_rule(script: Script, rule: Any, where: str) -> None:
    """Adds one item of a file. Raises ValueError that says what is wrong with it."""
    kinds = [kind for kind in KINDS if isinstance(rule, dict) and kind in rule]
    if len(kinds) != 1:
        raise ValueError(f"{where}: must be an object with one of {', '.join(KINDS)}")
    kind = kinds[0]
    options = {name: value for name, value in rule.items() if name != kind}
    if unknown := options.keys() - set(KINDS[kind]):
        raise ValueError(
            f"{where}: unknown field {sorted(unknown)[0]!r}; a {kind} has {', '.join(KINDS[kind]) or 'none'}"
        )
    value = rule[kind]
    if kind in ("fail", "block"):
        getattr(script, kind)(value, **options)
        return
    values = value if isinstance(value, list) else [value]
    parts = [part for i, item in enumerate(values) for part in wire_parts(item, f"{where}.{kind}[{i}]")]
    getattr(script, kind)(*parts, **options)


def read_script(script: Script, path: Path) -> None:
    """Adds the answers of a file. Raises ValueError that names the file and the item."""
    try:
        rules = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    for i, rule in enumerate(rules if isinstance(rules, list) else [rules]):
        add_rule(script, rule, f"{path}[{i}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--script", type=Path, help="JSON file of answers")
    parser.add_argument("--model", type=Path, help="folder of a model that answers where the script has no answer")
    given = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with gemini_server(given.model, given.port) as script:
        if given.script:
            read_script(script, given.script)
        print("\n".join(f"export {name}={value}" for name, value in script.environment.items()), flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
