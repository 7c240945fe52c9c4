"""What users of the ``tools`` source ask for: intents, each a tool under several names with the requests that it answers.

    Intent("weather")   names        get_weather, current_weather, …           one of them is declared
                        parameters   city (or location, place), unit?, day?    each under one of its names
                        requests     "What is the weather in {city}?", …       slots are keys of parameters
                        result       {temperature: 21, sky: sunny}             answer: "21 degrees and sunny in Bern"

Names are many, so that a model has to read the declaration. The value of the first parameter, together with the intent, decides the
split of an item (splits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alhena.corpus.starter.items import pick, sample
from alhena.corpus.starter.text.retrieval import KEYS, VALUES

CITIES = (
    "Bern Paris London Berlin Madrid Rome Vienna Prague Oslo Lisbon Athens Dublin Warsaw Helsinki Zurich Geneva Munich Milan Lyon "
    "Porto Boston Chicago Denver Dallas Seattle Austin Toronto Tokyo Osaka Seoul Beijing Delhi Mumbai Cairo Lagos Nairobi Sydney "
    "Lima Quito Havana"
).split()
PEOPLE = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Karin Leo Mia Noah Olga Paul Rosa Sam Tina Uwe Vera Walter Yara Zoe Alice "
    "Bob Clara Daniel Eva Frank Grace Henry Julia Kevin Laura Mark Nina Oscar Peter Sarah"
).split()
ITEMS = "apples bread milk eggs rice pasta cheese coffee tea honey lemons onions carrots butter soap paper pens lamps chairs books".split()
ROOMS = "kitchen bedroom bathroom office hall garden garage cellar".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow".split()
COLORS = "red green blue yellow purple orange pink white".split()
LANGUAGES = "German French Spanish Italian Portuguese Polish Turkish Russian Greek Hindi Chinese Japanese Arabic English".split()
CURRENCIES = "USD EUR CHF GBP JPY INR CAD AUD".split()
TITLES = "lunch dinner meeting dentist training concert party lesson interview holiday".split()
STEMS = "notes report todo readme letter budget plan recipe diary draft".split()
SKIES = "sunny cloudy rainy windy snowy foggy".split()

UNITS = ("celsius", "fahrenheit")
# Values that are all there are.
CLOSED = {*DAYS, *CURRENCIES, *UNITS}
# Parts of syllables of coined words; half of the words end with a vowel.
ONSETS, VOWELS, CODAS = "b d f g h j k l m n p r s t v w z br st tr".split(), "aeiou", ("", "", "", "n", "r", "s")

Rng = np.random.Generator
Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}


def words(rng: Rng, low: int = 2, high: int = 3) -> str:
    """A few words, as the text of a message or a search."""
    return " ".join(sample(rng, KEYS + VALUES, int(rng.integers(low, high + 1))))


def or_coined(rng: Rng, value: Any) -> Any:
    """The value; of words of open lists one in three is replaced by a coined one, which a model can only copy.

    A model that knows all values by heart learns which of them are never asked for in training, and avoids them in the test.
    """
    if not isinstance(value, str) or not value.isalpha() or value in CLOSED or rng.random() > 1 / 3:
        return value
    word = "".join(pick(rng, ONSETS) + pick(rng, VOWELS) for _ in range(int(rng.integers(2, 4)))) + pick(rng, CODAS)
    return word.capitalize() if value[0].isupper() else word


def clock(rng: Rng) -> str:
    return f"{int(rng.integers(6, 23))}:{pick(rng, ('00', '15', '30', '45'))}"


# Values of parameters by their kind.
VALUES_OF: Mapping[str, Callable[[Rng], Any]] = {
    "city": lambda rng: pick(rng, CITIES),
    "person": lambda rng: pick(rng, PEOPLE),
    "item": lambda rng: pick(rng, ITEMS),
    "room": lambda rng: pick(rng, ROOMS),
    "day": lambda rng: pick(rng, DAYS),
    "color": lambda rng: pick(rng, COLORS),
    "language": lambda rng: pick(rng, LANGUAGES),
    "currency": lambda rng: pick(rng, CURRENCIES),
    "title": lambda rng: pick(rng, TITLES),
    "file": lambda rng: f"{pick(rng, STEMS)}.{pick(rng, ('txt', 'md', 'csv', 'json'))}",
    "text": words,
    "clock": clock,
    "small": lambda rng: int(rng.integers(1, 13)),
    "count": lambda rng: int(rng.integers(1, 61)),
    "amount": lambda rng: int(rng.integers(2, 500)),
    "degrees": lambda rng: int(rng.integers(15, 29)),
    "switch": lambda rng: bool(rng.random() < 0.5),
    "unit": lambda rng: pick(rng, UNITS),
}


@dataclass(frozen=True)
class Parameter:
    """A parameter under several names; ``schema`` is that of its values."""

    names: tuple[str, ...]
    kind: str
    schema: Schema
    description: str
    required: bool = True


@dataclass(frozen=True)
class Intent:
    """A tool under several names. ``requests`` and ``answer`` have slots; those of ``answer`` may also be keys of the result."""

    names: tuple[str, ...]
    description: str
    parameters: Mapping[str, Parameter]
    requests: tuple[str, ...]
    result: Callable[[Rng, Mapping[str, Any]], dict[str, Any]]
    answer: str
    # A request that needs two calls; its slots are the first parameter's {0} and {1}.
    twice: str | None = None


def _names(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _done(rng: Rng, values: Mapping[str, Any]) -> dict[str, Any]:
    return {pick(rng, ("status", "result")): pick(rng, ("ok", "done"))}


CITY = Parameter(_names("city location place town"), "city", STRING, "the name of a city")
DAY = Parameter(_names("day date when"), "day", STRING, "the day", False)
CLOCK = Parameter(_names("time at hour"), "clock", STRING, "the time, as 7:30")
PERSON = Parameter(_names("person to recipient name contact"), "person", STRING, "the name of a person")
TEXT = Parameter(_names("text message body content"), "text", STRING, "the words")
ROOM = Parameter(_names("room area where"), "room", STRING, "the room")
UNIT = Parameter(_names("unit units scale"), "unit", {"type": "string", "enum": [*UNITS]}, "the unit", False)
ITEM = Parameter(_names("item product name thing"), "item", STRING, "what to buy")

INTENTS: Mapping[str, Intent] = {
    "weather": Intent(
        _names("get_weather weather current_weather get_current_weather weather_report check_weather"),
        "The weather of a city.",
        {"city": CITY, "day": DAY, "unit": UNIT},
        (
            "What is the weather in {city}?", "How is the weather in {city} {day}?", "Is it warm in {city}?", "Weather in {city}, please.",
            "What's the weather like in {city}?", "What is the temperature in {city} in {unit}?", "Will it rain in {city} {day}?",
            "How warm is it in {city}?", "Tell me the weather in {city}.",
        ),
        lambda rng, values: {"temperature": int(rng.integers(-5, 36)), "sky": pick(rng, SKIES)},
        "{temperature} degrees and {sky} in {city}",
        "What is the weather in {0} and in {1}?",
    ),
    "time": Intent(
        _names("get_time time current_time get_current_time world_clock local_time"),
        "The local time of a city.",
        {"city": CITY},
        ("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?", "Current time in {city}?"),
        lambda rng, values: {"time": clock(rng)},
        "it is {time} in {city}",
        "What time is it in {0} and in {1}?",
    ),
    "timer": Intent(
        _names("set_timer start_timer timer countdown"),
        "Starts a timer.",
        {"minutes": Parameter(_names("minutes duration length"), "count", INTEGER, "minutes")},
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Count down {minutes} minutes."),
        _done,
        "the timer runs for {minutes} minutes",
    ),
    "alarm": Intent(
        _names("set_alarm create_alarm alarm wake_up"),
        "Sets an alarm.",
        {"time": CLOCK, "day": DAY},
        ("Wake me at {time}.", "Set an alarm for {time}.", "Wake me {day} at {time}.", "I need an alarm at {time}."),
        _done,
        "the alarm is set for {time}",
    ),
    "message": Intent(
        _names("send_message message send_text write_message send_sms"),
        "Sends a message to a person.",
        {"person": PERSON, "text": TEXT},
        ("Send {person} the message {text}.", "Write to {person}: {text}", "Tell {person}: {text}", "Message {person}: {text}"),
        _done,
        "the message to {person} is sent",
    ),
    "music": Intent(
        _names("play_song play_music play start_music"),
        "Plays a song.",
        {
            "song": Parameter(_names("song title track"), "text", STRING, "the title"),
            "artist": Parameter(_names("artist singer by"), "person", STRING, "the artist", False),
        },
        ("Play {song}.", "Play the song {song}.", "Play {song} by {artist}.", "I want to hear {song}."),
        lambda rng, values: {"playing": True},
        "playing {song}",
    ),
    "light": Intent(
        _names("set_light light switch_light control_light"),
        "Switches a light.",
        {"room": ROOM, "on": Parameter(_names("on enabled state"), "switch", {"type": "boolean"}, "on or off")},
        ("Turn {on} the light in the {room}.", "Switch {on} the {room} light.", "Light {on} in the {room}!"),
        _done,
        "the light in the {room} is {on}",
    ),
    "color": Intent(
        _names("set_color change_color light_color paint"),
        "Sets the color of a light.",
        {"color": Parameter(_names("color colour tone"), "color", STRING, "a color"), "room": ROOM},
        ("Make the light in the {room} {color}.", "I want {color} light in the {room}.", "Change the {room} to {color}."),
        _done,
        "the light in the {room} is {color}",
    ),
    "heating": Intent(
        _names("set_temperature thermostat set_thermostat heat"),
        "Sets the temperature of a room.",
        {"degrees": Parameter(_names("degrees temperature value"), "degrees", NUMBER, "degrees"), "room": ROOM},
        ("Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees.", "I want {degrees} degrees in the {room}."),
        _done,
        "the {room} is set to {degrees} degrees",
    ),
    "event": Intent(
        _names("create_event add_event calendar schedule new_event"),
        "Adds an event to the calendar.",
        {
            "title": Parameter(_names("title name event"), "title", STRING, "what happens"),
            "day": Parameter(DAY.names, "day", STRING, "the day"),
            "time": CLOCK,
        },
        ("Add {title} {day} at {time}.", "Put {title} in my calendar, {day} at {time}.", "I have {title} {day} at {time}."),
        _done,
        "{title} is in your calendar",
    ),
    "add": Intent(
        _names("add add_numbers sum plus"),
        "Adds two numbers.",
        {
            "a": Parameter(_names("a x first left"), "count", INTEGER, "a number"),
            "b": Parameter(_names("b y second right"), "count", INTEGER, "a number"),
        },
        ("What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}", "How much is {a} and {b}?"),
        lambda rng, values: {"sum": values["a"] + values["b"]},
        "{a} plus {b} is {sum}",
    ),
    "multiply": Intent(
        _names("multiply times product mul"),
        "Multiplies two numbers.",
        {
            "a": Parameter(_names("a x first left"), "count", INTEGER, "a number"),
            "b": Parameter(_names("b y second right"), "count", INTEGER, "a number"),
        },
        ("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b}"),
        lambda rng, values: {"product": values["a"] * values["b"]},
        "{a} times {b} is {product}",
    ),
    "convert": Intent(
        _names("convert_currency convert exchange exchange_money"),
        "Converts money.",
        {
            "amount": Parameter(_names("amount value sum"), "amount", NUMBER, "how much"),
            "source": Parameter(_names("source from_currency from"), "currency", STRING, "the currency"),
            "target": Parameter(_names("target to_currency to"), "currency", STRING, "the new currency"),
        },
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?", "{amount} {source} in {target}?"),
        lambda rng, values: {"amount_out": int(rng.integers(2, 900))},
        "{amount} {source} are {amount_out} {target}",
    ),
    "translate": Intent(
        _names("translate translate_text translation"),
        "Translates a text.",
        {"text": TEXT, "language": Parameter(_names("language target to"), "language", STRING, "the language")},
        ("Translate {text} to {language}.", "How do you say {text} in {language}?", "What is {text} in {language}?"),
        lambda rng, values: {"translation": words(rng, 2, 2)},
        "{translation}",
    ),
    "search": Intent(
        _names("search search_web web_search find lookup google"),
        "Searches the web.",
        {"query": Parameter(_names("query q question terms"), "text", STRING, "what to search")},
        ("Search for {query}.", "Look up {query}.", "Find pages about {query}.", "Search the web for {query}."),
        lambda rng, values: {"title": words(rng, 2, 3)},
        "i found {title}",
        "Search for {0} and for {1}.",
    ),
    "cart": Intent(
        _names("add_to_cart buy order order_item add_item"),
        "Puts an item in the cart.",
        {"item": ITEM, "count": Parameter(_names("count quantity number amount"), "small", INTEGER, "how many")},
        ("Order {count} {item}.", "Put {count} {item} in the cart.", "I need {count} {item}.", "Buy {count} {item}."),
        _done,
        "{count} {item} are ordered",
    ),
    "price": Intent(
        _names("get_price price find_price product_price"),
        "The price of an item.",
        {"item": ITEM},
        ("What do {item} cost?", "How much are {item}?", "What is the price of {item}?", "Price of {item}?"),
        lambda rng, values: {"price": int(rng.integers(1, 99))},
        "{item} cost {price}",
        "What do {0} and {1} cost?",
    ),
    "flight": Intent(
        _names("find_flights search_flights flights book_flight"),
        "Finds flights.",
        {
            "target": Parameter(_names("target to destination"), "city", STRING, "the city of arrival"),
            "source": Parameter(_names("source from origin"), "city", STRING, "the city of departure"),
            "day": DAY,
        },
        ("Find a flight from {source} to {target}.", "I fly from {source} to {target} {day}.", "Flights from {source} to {target}?"),
        lambda rng, values: {"price": int(rng.integers(50, 900)), "departure": clock(rng)},
        "there is a flight to {target} at {departure}",
    ),
    "table": Intent(
        _names("book_table reserve_table reservation reserve"),
        "Books a table in a restaurant.",
        {
            "people": Parameter(_names("people guests seats"), "small", INTEGER, "how many people"),
            "day": Parameter(DAY.names, "day", STRING, "the day"),
            "time": CLOCK,
        },
        ("Book a table for {people} {day} at {time}.", "We are {people}, {day} at {time}. Book a table.", "A table for {people}, {day} at {time}."),
        lambda rng, values: {"number": int(rng.integers(1, 40))},
        "table {number} is booked",
    ),
    "file": Intent(
        _names("read_file open_file get_file file_content cat"),
        "Reads a file.",
        {"path": Parameter(_names("path file_path file filename name"), "file", STRING, "the path")},
        ("Read the file {path}.", "What is in {path}?", "Open {path}.", "Show me {path}.", "Read {path} and tell me what it says."),
        lambda rng, values: {"content": words(rng, 2, 4)},
        "it says {content}",
        "Read {0} and {1}.",
    ),
}  # fmt: skip
