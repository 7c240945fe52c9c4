"""Answers in the outputs of models of several styles: numbers, letters of choices, boxed expressions, code; empty where there is none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

# What stands before a final answer, in the languages of MGSM.
_ANNOUNCED = (
    r"answer\s*(?:is|:|=)|antwort\s*(?:ist|lautet|:)|réponse\s*(?:est|:)|respuesta\s*(?:es|:)|ответ\s*[:—–-]|答案(?:是|为|:|：)|"
    r"答えは|答え\s*[:：]|คำตอบคือ|jibu ni|సమాధానం|উত্তর হল"
)
_ANSWER = re.compile(rf"(?:{_ANNOUNCED})", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
_GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def last_line(output: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in output.split("\n") if line.strip()]
    return lines[-1] if lines else ""


def first_line(output: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in output.split("\n") if line.strip()), "")


def after_announcement(output: str) -> str:
    """What follows the last "the answer is", up to the end of its line; empty without one.

    >>> after_announcement("First … So the answer is (B).\\nQ: another")
    '(B).'
    """
    found = None
    for found in _ANSWER.finditer(output):  # noqa: B007
        pass
    return first_line(output[found.end() :].lstrip(" :*：")) if found else ""


_QUOTES = '*_`"“”«»„ '


def short_answer(output: str) -> str:
    """A word or phrase: announced, or the first line; without marks of Markdown, quotes and a period.

    >>> [short_answer(text) for text in ("**Blue.**", "The answer is: \\"blue\\".", "Answer: 12%\\nIt says so.", "")]
    ['Blue', 'blue', '12%', '']
    """
    plain = output.replace("**", "")
    text = (after_announcement(plain) or first_line(plain)).strip(_QUOTES)
    return (text if re.search(r"\b\w\.\w\.$", text) else text.rstrip(".")).strip(_QUOTES)


_INTRODUCED = re.compile(r"^[^\n:]*\b(?:transcri|translat|caption|says|said)\w*[^\n:]*:\s*", re.IGNORECASE)


def spoken_text(output: str) -> str:
    """A transcript, a translation or a caption as one line, without an introduction ("Here is the transcript:") and quotes.

    >>> spoken_text('Sure! Here is the transcription:\\n\\n"Good morning,\\nAnna."')
    'Good morning, Anna.'
    """
    text = _INTRODUCED.sub("", output.strip(), count=1)
    return " ".join(text.split()).strip(_QUOTES)


def boxed(output: str) -> str:
    r"""The content of the last ``\boxed{…}``, braces balanced.

    >>> boxed(r"so $x = \boxed{\frac{1}{2}}$")
    '\\frac{1}{2}'
    """
    start = max(output.rfind(r"\boxed{"), output.rfind(r"\fbox{"))
    if start < 0:
        return ""
    start, depth = output.index("{", start) + 1, 1
    for i in range(start, len(output)):
        depth += {"{": 1, "}": -1}.get(output[i], 0)
        if not depth:
            return output[start:i].strip()
    return ""


def _ascii_digits(text: str) -> str:
    """Decimal digits of all scripts as ASCII."""
    return text if text.isascii() else "".join(str(unicodedata.decimal(ch)) if ch.isdecimal() else ch for ch in text)


def canonical_number(text: str) -> str:
    """A number in one form; empty if the text is none.

    >>> [canonical_number(text) for text in ("$1,200.00", "-3.50", "6/4", "১২", "none")]
    ['1200', '-7/2', '3/2', '12', '']
    """
    try:
        return str(Fraction(_GROUPS.sub("", _ascii_digits(text)).replace("$", "").strip().rstrip(".")))
    except (ValueError, ZeroDivisionError):
        return ""


def number(output: str) -> str:
    """The final number of a solution: after ``####``, boxed, announced, or the last one.

    >>> [number(text) for text in ("6+4=10\\n#### 10", "**Answer:** $18.00", "So she has 3 or 4. The answer is 1,234 apples.", "It is 7.")]
    ['10', '18', '1234', '7']
    """
    output = _ascii_digits(output).replace("\\$", "$").replace("{,}", ",")
    marked = output.rsplit("####", 1)[1] if "####" in output else ""
    for part in (first_line(marked), boxed(output), after_announcement(output)):
        if found := _NUMBER.search(part):
            return canonical_number(found[0])
    numbers = _NUMBER.findall(output)
    return canonical_number(numbers[-1]) if numbers else ""


def letter(output: str, choices: Sequence[str]) -> str:
    """The letter of a choice: announced, alone on a line, in parentheses, or by the text of the choice.

    >>> colors = ("red", "blue")
    >>> [letter(text, colors) for text in ("The answer is (B).", "**A**", "B) blue", "I think it is blue", "Neither.")]
    ['B', 'A', 'B', 'B', '']
    """
    last = chr(ord("A") + len(choices) - 1)
    plain = output.replace("*", "").replace("\\boxed{", "").replace("$", "")
    announced = after_announcement(plain)
    exact = re.compile(rf"\(?\[?\s*([A-{last}])(?:\s*[)\].:}}]+(?:\s|$)|\s*$)")
    for part in (announced, first_line(plain), last_line(plain)):
        if part and (found := exact.match(part)):
            return found[1]
    if named_letters := re.findall(rf"\(([A-{last}])\)", plain):
        return str(named_letters[-1])
    for part in filter(None, (announced, plain)):
        named = [
            i for i, choice in enumerate(choices) if re.search(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", part, re.I)
        ]
        if len(named) == 1:
            return chr(ord("A") + named[0])
    return ""


def code_block(output: str) -> str:
    """The first block of code of an answer in Markdown; without one the output itself."""
    found = re.search(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", output, re.DOTALL)
    return found[1] if found else output
