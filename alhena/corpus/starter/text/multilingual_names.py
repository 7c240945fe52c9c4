"""Multilingual names: countries, languages, months, weekdays (Unicode CLDR, through babel), numbers (num2words).

names         March                      a list of one item in all languages: facts as prose
              German: März
              Russian: март
translation   Translate to German: March   ──►   März         and the reverse: "Translate to English: март"  ──►  March
"""

from __future__ import annotations

from functools import lru_cache

from alhena.content import Document, Text
from alhena.corpus.starter.items import ItemSpec, Turn, chat, pick, plain_document, sample
from alhena.corpus.starter.splits import is_held_out_request

# Seven scripts: Latin, Cyrillic, Greek, Devanagari, Han, kana, Arabic.
LANGUAGES = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "pl": "Polish",
    "tr": "Turkish", "ru": "Russian", "el": "Greek", "hi": "Hindi", "zh": "Chinese", "ja": "Japanese", "ar": "Arabic",
}  # fmt: skip
COUNTRIES = (
    "AR AT AU BE BR CA CH CL CN CO CU DE DK EG ES FI FR GB GR HU IE IN IR IS IT JP KE KR MX NG NL NO NZ PE PL PT RU "
    "SE TR UA US ZA"
).split()
LANGUAGE_CODES = "ar cs da de el en es fi fr hi hu it ja ko nl pl pt ru sv tr".split()
NUMBERS = range(31)
# Languages that num2words supports.
NUMBER_LANGUAGES = ("de", "fr", "es", "it", "pt", "pl", "tr", "ru", "ja", "ar")
# Languages whose months are inflected in a date (genitive), so that the stand-alone form differs.
INFLECTED_MONTHS = ("pl", "ru", "el")


@lru_cache(maxsize=1)
def translations() -> dict[str, dict[str, str]]:
    """English item → language → name.

    >>> translations()["March"]["de"], translations()["March"]["ru"], translations()["seven"]["fr"]
    ('März', 'март', 'sept')
    """
    from num2words import num2words

    english, by_item = _cldr("en"), {}
    others = {language: _cldr(language) for language in LANGUAGES}
    for key, item in english.items():
        by_item[item] = {language: others[language][key] for language in LANGUAGES}
    for number in NUMBERS:
        by_item[num2words(number)] = {language: num2words(number, lang=language) for language in NUMBER_LANGUAGES}
    return by_item


def _cldr(language: str) -> dict[str, str]:
    """Names in one language by key: countries, languages, months, days."""
    from babel import Locale

    locale = Locale.parse(language)
    form = "stand-alone" if language in INFLECTED_MONTHS else "format"
    names = {f"country {code}": locale.territories[code] for code in COUNTRIES}
    names |= {f"language {code}": locale.languages[code] for code in LANGUAGE_CODES}
    names |= {f"month {n}": name for n, name in locale.months[form]["wide"].items()}
    return names | {f"day {n}": name for n, name in locale.days["format"]["wide"].items()}


def make_names(spec: ItemSpec) -> Document:
    """Two lists: an item with its names in all languages."""
    items = sample(spec.rng, list(translations()), 2)
    lists = []
    for item in items:
        names = translations()[item]
        languages = sample(spec.rng, list(names), len(names))
        lines = [f"{LANGUAGES[language]}: {names[language]}" for language in languages]
        lists.append("\n".join([item, *lines]))
    return plain_document(spec, [Text("\n\n".join(lists))], "mul", items=items)


@lru_cache(maxsize=2)
def _requests(held_out: bool) -> list[tuple[str, str]]:
    """All (item, language) pairs that are held out, or all others."""
    pairs = [(item, language) for item, names in translations().items() for language in names]
    return [pair for pair in pairs if is_held_out_request(*pair) == held_out]


def make_translation(spec: ItemSpec) -> Document:
    """Four requests in training, one elsewhere; 70 % are from English."""
    rng, test = spec.rng, spec.split == "test"
    requests = [pick(rng, _requests(test)) for _ in range(4 if spec.split == "train" else 1)]
    turns: list[Turn] = []
    for item, language in requests:
        name = translations()[item][language]
        forward = rng.random() < 0.7
        from_english = (f"Translate to {LANGUAGES[language]}: {item}", name)
        turns.append(from_english if forward else (f"Translate to English: {name}", item))
    target, source = (requests[-1][1], "en") if forward else ("en", requests[-1][1])
    return chat(spec, [], turns, "mul", **{"to": target, "from": source, "items": [list(r) for r in requests]})
