"""Words of any script, and rules for the quality of prose. Scripts without spaces are counted in characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# A reason to drop a document, with details.
Reason = tuple[str, str]

# Unicode blocks of scripts without spaces between words, and Hangul, which has few.
_SPACELESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31a0-\u9fff\ua000-\ua4cf"  # CJK, kana, Bopomofo, Yi
    "\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"  # Hangul, compatibility forms
    "\U00020000-\U0003ffff"  # rarer CJK
)
# Vowel signs and accents. Python's \w excludes them, which would split words of Hindi and Thai.
_MARKS = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M") + "\u200c\u200d"
_IN_SPACELESS = re.compile(f"[{_SPACELESS}]")
_UNITS = re.compile(rf"[{_SPACELESS}][{_MARKS}]*|(?:(?![{_SPACELESS}])[\w{_MARKS}])+")
# Characters of the n-grams that are counted instead of words.
PHRASE_LENGTH = 8
MIN_LETTER_FRACTION = 0.5
MAX_WORD_FRACTION = 0.4
MIN_UNIQUE_LINE_FRACTION = 0.4
MAX_WORD_LENGTH = 400
# Taken for one word where words are not separated.
CHARACTERS_PER_WORD = 2
# Only the beginning of a text is examined: the n-gram counts of a book take gigabytes.
MAX_JUDGED_CHARACTERS = 1 << 20


def is_spaceless(text: str) -> bool:
    """Whether more than a quarter of the text is in scripts without spaces between words."""
    return not text.isascii() and 4 * len(_IN_SPACELESS.findall(text)) > _count_nonspace(text)


def _count_nonspace(text: str) -> int:
    """Number of characters that are not whitespace."""
    return sum(map(len, text.split()))


def units(text: str) -> list[str]:
    """Words in lower case; in scripts without spaces, characters with their marks.

    >>> units("The cat's हिन्दी 天气 ไทย")
    ['the', 'cat', 's', 'हिन्दी', '天', '气', 'ไ', 'ท', 'ย']
    """
    return [unit for unit in _UNITS.findall(text.lower()) if any(ch.isalnum() or ch == "_" for ch in unit)]


def prose_defect(text: str, min_words: int) -> Reason | None:
    """Why a text is poor prose, or None; of a long text the beginning is examined."""
    text = text[:MAX_JUDGED_CHARACTERS]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= 6 and len(set(lines)) / len(lines) < MIN_UNIQUE_LINE_FRACTION:
        return "lines repeated", f"only {len(set(lines))} of {len(lines)} lines are unique"
    return _by_characters(text, min_words) if is_spaceless(text) else _by_words(text.split(), min_words)


def _by_words(words: list[str], min_words: int) -> Reason | None:
    if len(words) < min_words:
        return "too short", f"{len(words)} words; the minimum is {min_words}"
    if len(words) >= 20:
        letters = sum(any(ch.isalpha() for ch in word) for word in words) / len(words)
        if letters < MIN_LETTER_FRACTION:
            return "few words with letters", f"{letters:.0%}; the minimum is {MIN_LETTER_FRACTION:.0%}"
        top, count = Counter(words).most_common(1)[0]
        if count / len(words) > MAX_WORD_FRACTION:
            return "one word repeated", f"{top[:20]!r} is {count / len(words):.0%} of all words"
    longest = max(map(len, words), default=0)
    return ("no spaces", f"a word of {longest} characters") if longest > MAX_WORD_LENGTH else None


def _by_characters(text: str, min_words: int) -> Reason | None:
    characters, min_characters = "".join(units(text)), CHARACTERS_PER_WORD * min_words
    if len(characters) < min_characters:
        return "too short", f"{len(characters)} letters of a script without spaces; the minimum is {min_characters}"
    letters = len(characters) / _count_nonspace(text)
    if letters < MIN_LETTER_FRACTION:
        return "few letters", f"{letters:.0%} of the characters; the minimum is {MIN_LETTER_FRACTION:.0%}"
    if len(characters) >= 10 * PHRASE_LENGTH:
        phrases = Counter(characters[i : i + PHRASE_LENGTH] for i in range(len(characters) - PHRASE_LENGTH + 1))
        top, count = phrases.most_common(1)[0]
        fraction = min(1.0, PHRASE_LENGTH * count / len(characters))
        if fraction > MAX_WORD_FRACTION:
            return "one phrase repeated", f"{top!r} is {fraction:.0%} of all characters"
    return None
