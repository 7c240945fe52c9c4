"""JSON extraction: the values of some fields in a sentence, as JSON without spaces.

    Extract name, age as JSON: Anna from Bern is 31 years old.          ──►   {"name":"Anna","age":31}
    Return JSON {city: string, people: [string]}. Ben and Ida live in Oslo.   {"city":"Oslo","people":["Ben","Ida"]}

The fields are those that the request names, in its order, under one of their names; what a sentence does not state is null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alhena.content import Content, Document, Text
from alhena.corpus.starter.items import ItemSpec, pick, sample
from alhena.corpus.starter.splits import split_of
from alhena.corpus.starter.text.tool_intents import CITIES, COLORS, DAYS, ITEMS, PEOPLE, ROOMS, TITLES, clock, or_coined

JOBS = "baker teacher doctor farmer pilot nurse barber writer cook lawyer driver singer".split()
Rng = np.random.Generator


@dataclass(frozen=True)
class Field:
    """A field under several names, its type, and its value."""

    names: tuple[str, ...]
    type: str
    value: Callable[[Rng], Any]


@dataclass(frozen=True)
class Topic:
    """Sentences with slots, and the fields of which the slots are keys."""

    sentences: tuple[str, ...]
    fields: Mapping[str, Field]


def _field(names: str, values: list[str]) -> Field:
    return Field(tuple(names.split()), "string", lambda rng: pick(rng, values))


def _number(names: str, low: int, high: int) -> Field:
    return Field(tuple(names.split()), "integer", lambda rng: int(rng.integers(low, high)))


def _several(names: str, values: list[str]) -> Field:
    return Field(tuple(names.split()), "[string]", lambda rng: sample(rng, values, int(rng.integers(2, 4))))


_CLOCK = Field(("time", "hour", "start"), "string", clock)
TOPICS = (
    Topic(
        (
            "{person} from {city} is {age} years old.", "{person}, {age}, lives in {city}.", "I am {person}, a {job} from {city}.",
            "{person} is a {job} and {age} years old.", "In {city} lives {person}, who is {age}.", "My name is {person} and I am {age}.",
        ),
        {
            "person": _field("name person who", PEOPLE),
            "city": _field("city place town", CITIES),
            "age": _number("age years", 3, 95),
            "job": _field("job profession work", JOBS),
        },
    ),
    Topic(
        ("{person} bought {count} {item} for {price} dollars.", "{count} {item} cost {price} dollars.", "Order: {count} {item}, {price} dollars, for {person}."),
        {
            "person": _field("customer name buyer", PEOPLE),
            "item": _field("item product", ITEMS),
            "count": _number("count quantity number", 2, 40),
            "price": _number("price total cost", 2, 300),
        },
    ),
    Topic(
        ("The {title} is on {day} at {time} in {city}.", "On {day} at {time}: {title}.", "{title} in {city}, {day}, {time}.", "We have {title} on {day}."),
        {
            "title": _field("title event name", TITLES),
            "day": _field("day date", DAYS[:7]),
            "time": _CLOCK,
            "city": _field("city place location", CITIES),
        },
    ),
    Topic(
        ("{people} live in {city}.", "{people} meet on {day}.", "On {day} {people} travel to {city}."),
        {"people": _several("people names persons", PEOPLE), "city": _field("city place", CITIES), "day": _field("day date", DAYS[:7])},
    ),
    Topic(
        ("The {room} is {color} and has {count} chairs.", "We painted the {room} {color}.", "A {color} {room} with {count} chairs."),
        {"room": _field("room area", ROOMS), "color": _field("color colour", COLORS), "count": _number("chairs count", 2, 20)},
    ),
)  # fmt: skip
REQUESTS = (
    "Extract {fields} as JSON: {sentence}", "Return JSON {schema}. {sentence}", "{sentence} Return {fields} as JSON.",
    "JSON with {fields}: {sentence}", "Extract {schema} from: {sentence}", "{sentence} Give me {schema} as JSON.",
)  # fmt: skip


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _values(rng: Rng, topic: Topic, sentence: str, in_test: bool) -> dict[str, Any]:
    """Values of the slots of a sentence; the first two, together, are held out for the test or are not."""
    while True:
        values = {key: field.value(rng) for key, field in topic.fields.items() if f"{{{key}}}" in sentence}
        values = values if in_test else {key: or_coined(rng, value) for key, value in values.items()}
        if (split_of("json", *map(str, [*values.values()][:2])) == "test") == in_test:
            return values


def make(spec: ItemSpec) -> Document:
    """A sentence, and one to three of its fields; now and then one that it does not state."""
    rng = spec.rng
    topic = pick(rng, TOPICS)
    sentence = pick(rng, topic.sentences)
    values = _values(rng, topic, sentence, spec.split == "test")
    keys = sample(rng, [*values], int(rng.integers(1, 4)))
    absent = [key for key in topic.fields if key not in values]
    if absent and rng.random() < 0.15:
        keys.insert(int(rng.integers(0, len(keys) + 1)), pick(rng, absent))
    names = {key: pick(rng, topic.fields[key].names) for key in keys}
    said = {key: _joined(value) if isinstance(value, list) else str(value) for key, value in values.items()}
    schema = ", ".join(f"{names[key]}: {topic.fields[key].type}" for key in keys)
    request = pick(rng, REQUESTS).format(
        fields=_joined([*names.values()]), schema=f"{{{schema}}}", sentence=sentence.format(**said)
    )
    answer = json.dumps({names[key]: values.get(key) for key in keys}, separators=(",", ":"))
    turns = (Content("user", (Text(request),)), Content("model", (Text(answer),)))
    return Document(turns, spec.id, spec.source, "en", {"task": spec.task, "values": [*map(str, values.values())][:2]})
