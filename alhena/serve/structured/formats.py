"""Patterns of strings: formats of JSON Schema as regular expressions of whole texts, and the cost of the repetitions of a pattern.

Each expression is that of its format, or of a subset that all readers accept.
"""

from __future__ import annotations

import re

_LEAP_YEAR = r"([0-9][0-9](0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
DATE = (
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,30}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9_+\-]{1,32}"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
PATTERNS = {
    "date": DATE,
    "time": _TIME,
    "date-time": f"{DATE}T{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "email": rf"{_ATOM}(\.{_ATOM}){{0,3}}@{_LABEL}(\.{_LABEL}){{1,3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
}

_ATOMS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\{(\d+),?(\d*)\}|.", re.DOTALL)


def repetitions(pattern: str) -> int:
    """How often the innermost part of a pattern is repeated: the product of nested counts.

    >>> repetitions("[a-z]{2,5}x{3}"), repetitions("(([{9}]{2}b){10}c){7}d"), repetitions("a{10}{10}")
    (5, 140, 100)
    """
    # Of each open group the largest count so far; then of the part before the current position.
    groups, last = [1], 1
    for atom in _ATOMS.finditer(pattern):
        text = atom.group()
        if text == "(":
            groups.append(1)
        elif text == ")" and len(groups) > 1:
            last = groups.pop()
        elif atom.group(1):
            last *= max(int(atom.group(1)), int(atom.group(2) or 0), 1)
        elif text not in "*+?":
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)
