"""Multilingual names: countries, languages, months, weekdays (Unicode CLDR, through babel), numbers (num2words).

names         March                      one list an item, all languages: knowledge, stated as prose
              German: März
              Russian: март
translation   Translate to German: March   ──►   März         and back: "Translate to English: март"  ──►  March
"""

from __future__ import annotations

from functools import lru_cache

from alhena.content import Document, Text
from alhena.corpus.starter.items import Order, Turn, chat, pick, pick_some, running
from alhena.corpus.starter.splits import is_held_out_request

LANGUAGES = {  # seven scripts: Latin, Cyrillic, Greek, Devanagari, Han, kana, Arabic
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "pl": "Polish",
    "tr": "Turkish", "ru": "Russian", "el": "Greek", "hi": "Hindi", "zh": "Chinese", "ja": "Japanese", "ar": "Arabic",
}  # fmt: skip
COUNTRIES = (
    "AR AT AU BE BR CA CH CL CN CO CU DE DK EG ES FI FR GB GR HU IE IN IR IS IT JP KE KR MX NG NL NO NZ PE PL PT RU "
    "SE TR UA US ZA"
).split()
TONGUES = "ar cs da de el en es fi fr hi hu it ja ko nl pl pt ru sv tr".split()
NUMBERS = range(31)
COUNTED = ("de", "fr", "es", "it", "pt", "pl", "tr", "ru", "ja", "ar")  # languages whose number words num2words knows
CASED_MONTHS = ("pl", "ru", "el")  # in a date their months stand in the genitive; elsewhere both forms are one


@lru_cache(maxsize=1)
def dictionary() -> dict[str, dict[str, str]]:
    """English item → language → name.

    >>> dictionary()["March"]["de"], dictionary()["March"]["ru"], dictionary()["seven"]["fr"]
    ('März', 'март', 'sept')
    """
    from num2words import num2words

    english, found = _cldr("en"), {}
    others = {language: _cldr(language) for language in LANGUAGES}
    for key, item in english.items():
        found[item] = {language: others[language][key] for language in LANGUAGES}
    for number in NUMBERS:
        found[num2words(number)] = {language: num2words(number, lang=language) for language in COUNTED}
    return found


def _cldr(language: str) -> dict[str, str]:
    from babel import Locale

    locale = Locale.parse(language)
    form = "stand-alone" if language in CASED_MONTHS else "format"
    names = {f"country {code}": locale.territories[code] for code in COUNTRIES}
    names |= {f"tongue {code}": locale.languages[code] for code in TONGUES}
    names |= {f"month {n}": name for n, name in locale.months[form]["wide"].items()}
    return names | {f"day {n}": name for n, name in locale.days["format"]["wide"].items()}


def make_names(order: Order) -> Document:
    items = pick_some(order.rng, list(dictionary()), 2)
    lists = []
    for item in items:
        names = dictionary()[item]
        lines = [
            f"{LANGUAGES[language]}: {names[language]}" for language in pick_some(order.rng, list(names), len(names))
        ]
        lists.append("\n".join([item, *lines]))
    return running(order, [Text("\n\n".join(lists))], "mul", items=items)


@lru_cache(maxsize=2)
def _requests(held_out: bool) -> list[tuple[str, str]]:
    return [(i, l) for i, names in dictionary().items() for l in names if is_held_out_request(i, l) == held_out]


def make_translation(order: Order) -> Document:
    rng, test = order.rng, order.split == "test"
    requests = [pick(rng, _requests(test)) for _ in range(4 if order.split == "train" else 1)]
    turns: list[Turn] = []
    for item, language in requests:
        name = dictionary()[item][language]
        forward = rng.random() < 0.7
        turns.append(
            (f"Translate to {LANGUAGES[language]}: {item}", name)
            if forward
            else (f"Translate to English: {name}", item)
        )
    target, source = (requests[-1][1], "en") if forward else ("en", requests[-1][1])
    return chat(order, [], turns, "mul", **{"to": target, "from": source, "items": [list(r) for r in requests]})
