"""Words of any script, and whether running text looks like prose. Scripts without spaces are judged by characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

Reason = tuple[str, str]

# Scripts whose words are not separated by spaces (Unicode blocks), and Hangul, whose spaces are few.
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
# Vowel signs and accents, which Python's \w leaves out: without them a word of Hindi or Thai falls apart.
_MARKS = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M") + "\u200c\u200d"
_IN_SPACELESS = re.compile(f"[{_SPACELESS}]")
_UNITS = re.compile(rf"[{_SPACELESS}][{_MARKS}]*|(?:(?![{_SPACELESS}])[\w{_MARKS}])+")
# A phrase of this many characters is what is counted in place of a word.
PHRASE = 8
LEAST_SHARE_OF_LETTERS = 0.5
MOST_SHARE_OF_ONE = 0.4
LEAST_SHARE_OF_LINES = 0.4
LONGEST_WORD = 400
# Characters that are taken for one word where words are not separated.
CHARACTERS_A_WORD = 2
# The beginning of a text decides: counts of all phrases of a book take gigabytes.
MOST_JUDGED = 1 << 20


def is_spaceless(text: str) -> bool:
    """Whether a quarter of the text or more is of scripts whose words are not separated by spaces."""
    return not text.isascii() and 4 * len(_IN_SPACELESS.findall(text)) > _solid(text)


def _solid(text: str) -> int:
    """Characters that are no spaces."""
    return sum(map(len, text.split()))


def units(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces, characters with their marks.

    >>> units("The cat's हिन्दी 天气 ไทย")
    ['the', 'cat', 's', 'हिन्दी', '天', '气', 'ไ', 'ท', 'ย']
    """
    return [unit for unit in _UNITS.findall(text.lower()) if any(ch.isalnum() or ch == "_" for ch in unit)]


def judge_prose(text: str, least_words: int) -> Reason | None:
    """Why running text is poor prose, or None; of a long text, its beginning is judged."""
    text = text[:MOST_JUDGED]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= 6 and len(set(lines)) / len(lines) < LEAST_SHARE_OF_LINES:
        return "lines repeated", f"only {len(set(lines))} of {len(lines)} lines differ"
    return _by_characters(text, least_words) if is_spaceless(text) else _by_words(text.split(), least_words)


def _by_words(words: list[str], least: int) -> Reason | None:
    if len(words) < least:
        return "too short", f"{len(words)} words, at least {least} wanted"
    if len(words) >= 20:
        letters = sum(any(ch.isalpha() for ch in word) for word in words) / len(words)
        if letters < LEAST_SHARE_OF_LETTERS:
            return "few words with letters", f"{letters:.0%}, at least 50 % wanted"
        top, count = Counter(words).most_common(1)[0]
        if count / len(words) > MOST_SHARE_OF_ONE:
            return "one word repeated", f"{top[:20]!r} is {count / len(words):.0%} of all words"
    longest = max(map(len, words), default=0)
    return ("no spaces", f"a word of {longest} characters") if longest > LONGEST_WORD else None


def _by_characters(text: str, least_words: int) -> Reason | None:
    characters, least = "".join(units(text)), CHARACTERS_A_WORD * least_words
    if len(characters) < least:
        return "too short", f"{len(characters)} letters of a script without spaces, at least {least} wanted"
    solid = _solid(text)
    if len(characters) / solid < LEAST_SHARE_OF_LETTERS:
        return "few letters", f"{len(characters) / solid:.0%} of the characters, at least 50 % wanted"
    if len(characters) >= 10 * PHRASE:
        phrases = Counter(characters[i : i + PHRASE] for i in range(len(characters) - PHRASE + 1))
        top, count = phrases.most_common(1)[0]
        share = min(1.0, PHRASE * count / len(characters))
        if share > MOST_SHARE_OF_ONE:
            return "one phrase repeated", f"{top!r} is {share:.0%} of all characters"
    return None
