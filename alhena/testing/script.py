"""The script of an offline Gemini API: which answer, failure or block each request gets, and the requests that arrived.

    request ─► rules with ``when``, in the order of adding; the first that matches
            └► answers without ``when``: each is given once, in the order of adding
            └► ``otherwise``

An answer that is not delivered (the request was refused as invalid) stays where it was.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from alhena.content import Image, Media, Part, Text, Thought, ToolCall

GENERATION = re.compile(r":(g|streamG)enerateContent$|/interactions$|/chat/completions$")
# The names that Google's API gives to HTTP codes.
STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Request:
    """A request as it arrived. ``body`` is its JSON, or None; ``status`` is the HTTP code of the response, once there is one."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes = b""
    status: int | None = None

    @property
    def body(self) -> Any:
        try:
            return json.loads(self.data)
        except ValueError:
            return None

    @property
    def model(self) -> str:
        """The model that the URL or the body names.

        >>> Request("POST", "/v1beta/models/gemini-2.5-flash:generateContent").model
        'gemini-2.5-flash'
        """
        match = re.search(r"/models/([^/:]+)", self.path)
        named = "" if match else self._field("model")
        return match[1] if match else str(named or "").removeprefix("models/")

    @property
    def call(self) -> str:
        """The method of the API: generateContent, streamGenerateContent, countTokens, …; or the last part of the path."""
        return re.split(r"[:/]", self.path)[-1]

    @property
    def text(self) -> str:
        """The text of the last turn."""
        return "\n".join(_texts(self._turns()[-1:]))

    @property
    def all_text(self) -> str:
        """The text of the system instruction and of all turns."""
        system = [self._field(name) for name in ("systemInstruction", "system_instruction")]
        return "\n".join([*_texts(system), *_texts(self._turns())])

    @property
    def config(self) -> Mapping[str, Any]:
        """The generationConfig."""
        return self._field("generationConfig") or self._field("generation_config") or {}

    @property
    def tools(self) -> list[str]:
        """The names of the declared functions."""
        declared = [tool.get("functionDeclarations", tool) for tool in self._field("tools") or []]
        flat = [function for item in declared for function in (item if isinstance(item, list) else [item])]
        return [function.get("function", function).get("name", "") for function in flat]

    @property
    def tool_results(self) -> dict[str, Any]:
        """What the functions returned that the application called since the last turn of the model, by name."""
        parts = [part for turn in self._turns()[-1:] for part in (turn.get("parts") or []) if isinstance(part, Mapping)]
        found = [part.get("functionResponse", part.get("function_response")) for part in parts]
        return {result["name"]: result.get("response") for result in found if result}

    def _field(self, name: str) -> Any:
        body = self.body
        return body.get(name) if isinstance(body, Mapping) else None

    def _turns(self) -> list[Any]:
        """The turns, whichever API the request belongs to; a request without turns is one turn."""
        found: Any = next((t for name in ("contents", "messages", "input") if (t := self._field(name))), [])
        if not isinstance(found, list):
            return [{"parts": [found]}]
        has_turns = any(isinstance(turn, Mapping) and turn.keys() & {"role", "content", "parts"} for turn in found)
        return found if has_turns else [{"parts": found}]


def _texts(value: Any) -> Iterator[str]:
    """All texts of turns and their parts, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        for name in ("text", "parts", "content"):
            yield from _texts(value.get(name))


# ── Outcomes ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reply:
    """An answer. ``finish`` is a finish reason of the API. ``delay`` is in seconds, before each part of a stream; ``break_after`` is the number of events of a stream, or of
    0 for a complete answer, after which the connection breaks."""

    parts: tuple[Part, ...]
    finish: str = "STOP"
    delay: float = 0.0
    break_after: int | None = None

    def __post_init__(self) -> None:
        from google.genai.types import FinishReason

        if self.finish not in FinishReason.__members__:
            raise ValueError(f"finish is {self.finish!r}; it must be one of {', '.join(FinishReason.__members__)}")


@dataclass(frozen=True)
class Failure:
    """An error in Google's format. ``retry_after`` is in seconds; ``delay`` in seconds before the response."""

    code: int
    message: str = ""
    retry_after: int | None = None
    delay: float = 0.0

    @property
    def status(self) -> str:
        return STATUSES.get(self.code, "UNKNOWN")

    def body(self) -> dict[str, Any]:
        message = self.message or f"scripted failure: {HTTPStatus(self.code).phrase.lower()}"
        return {"error": {"code": self.code, "message": message, "status": self.status}}


@dataclass(frozen=True)
class Block:
    """The prompt is blocked: a response with a block reason and no candidates."""

    reason: str = "SAFETY"
    category: str = "HARM_CATEGORY_HARASSMENT"

    def body(self, model: str) -> dict[str, Any]:
        rating = {"category": self.category, "probability": "HIGH", "blocked": True}
        feedback = {"blockReason": self.reason, "safetyRatings": [rating]}
        return {
            "promptFeedback": feedback,
            "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1},
            "modelVersion": model,
        }


Outcome = Reply | Failure | Block
When = str | re.Pattern[str] | Callable[[Request], bool] | None


def wire_parts(value: Any, where: str) -> tuple[Part, ...]:
    """The parts of a part in the format of the API. Raises ValueError that names the field."""
    from alhena.serve.gemini.wire.blobs import NoFiles
    from alhena.serve.gemini.wire.fields import WireError
    from alhena.serve.gemini.wire.parts import read_part

    try:
        return read_part(value, where, NoFiles(), None)
    except WireError as error:
        raise ValueError(error.message) from None


def parts_of(values: Iterable[Any]) -> tuple[Part, ...]:
    """Parts of an answer: a string is text, bytes are an image; parts of the SDK and of Alhena are taken as they are, anything else is
    written as JSON."""
    out: list[Part] = []
    for value in values:
        if isinstance(value, Text | Thought | ToolCall | Media):
            out.append(value)
        elif isinstance(value, str | bytes):
            out.append(Text(value) if isinstance(value, str) else Image(value))
        elif hasattr(value, "model_dump") and hasattr(value, "function_call"):
            out += wire_parts(value.model_dump(mode="json", by_alias=True, exclude_none=True), "the part of a reply")
        elif hasattr(value, "model_dump_json"):
            out.append(Text(value.model_dump_json()))
        else:
            out.append(Text(json.dumps(value, ensure_ascii=False)))
    return tuple(out)


def outcome_of(value: Any) -> Outcome:
    """What the function of a rule returned, as an outcome; a list or tuple is a reply of several parts."""
    if isinstance(value, Reply | Failure | Block):
        return value
    several = isinstance(value, tuple) or (
        isinstance(value, list) and any(not isinstance(v, str | dict) for v in value)
    )
    return Reply(parts_of(value if several else [value]))


@dataclass
class _Rule:
    outcome: Outcome | Callable[[Request], Any]
    when: When
    # None: for every generation.
    call: str | None
    # Deliveries that remain; None: any number.
    times: int | None

    def matches(self, request: Request) -> bool:
        if self.times == 0:
            return False
        if request.call != self.call if self.call else not GENERATION.search(request.path):
            return False
        if isinstance(self.when, str):
            return self.when.casefold() in request.text.casefold()
        if isinstance(self.when, re.Pattern):
            return self.when.search(request.text) is not None
        return self.when is None or bool(self.when(request))


class Play:
    """The delivery of one outcome to one request."""

    def __init__(self, rule: _Rule, outcome: Outcome) -> None:
        self.rule, self.outcome, self.delivered = rule, outcome, False


# ── The script ────────────────────────────────────────────────────────────────────────────────────────────────


class Script:
    """The answers of a server, and its recorded ``requests``. Safe to use from any thread."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        self.requests: list[Request] = []
        self._rules: list[_Rule] = []
        self._default: _Rule | None = None
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the environment with which the official SDKs and Gemini CLI use this server."""
        return {"GOOGLE_GEMINI_BASE_URL": self.url, "GEMINI_API_KEY": "offline"}

    def reply(
        self, *parts: Any, when: When = None, times: int | None = None, finish: str = "STOP", delay: float = 0.0,
        break_after: int | None = None,
    ) -> None:  # fmt: skip
        """Adds an answer: text, images, thoughts, function calls, or one function that makes it from the :class:`Request`.

        Without ``when`` it is given to the next request, once; with ``when`` to each request that matches; ``times`` changes that.
        """
        if len(parts) == 1 and callable(parts[0]) and not isinstance(parts[0], type):
            self._add(parts[0], when, times)
        else:
            self._add(Reply(parts_of(parts), finish.upper(), delay, break_after), when, times)

    def fail(
        self, code: int = 429, message: str = "", when: When = None, times: int | None = None, call: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        """Adds an HTTP error, for the next generation or for another ``call`` such as countTokens."""
        self._add(Failure(code, message, retry_after), when, times, call)

    def block(self, reason: str = "SAFETY", when: When = None, times: int | None = None) -> None:
        """Adds a response that blocks the prompt."""
        self._add(Block(reason), when, times)

    def otherwise(self, *parts: Any) -> None:
        """Sets the answer to requests for which there is no other: without it, they fail with code 400."""
        single = parts[0] if len(parts) == 1 and callable(parts[0]) else Reply(parts_of(parts))
        self._default = _Rule(single, None, None, None)

    def _add(self, outcome: Any, when: When, times: int | None, call: str | None = None) -> None:
        if times is None and when is None:
            times = 1
        with self._lock:
            self._rules.append(_Rule(outcome, when, call, times))

    @property
    def unused(self) -> int:
        """Answers in line that no request has got."""
        return sum(rule.times or 0 for rule in self._rules if rule.when is None)

    def reset(self) -> None:
        """Forgets all answers and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self._default = None

    def take(self, request: Request) -> Play | None:
        """The outcome of a request; ``give_back`` it when it is not delivered."""
        with self._lock:
            ordered = sorted(self._rules, key=lambda rule: rule.when is None)
            rule = next((rule for rule in ordered if rule.matches(request)), self._default)
            if rule is None or (rule is self._default and not GENERATION.search(request.path)):
                return None
            if rule.times is not None:
                rule.times -= 1
        outcome = rule.outcome
        if isinstance(outcome, Outcome):
            return Play(rule, outcome)
        try:
            return Play(rule, outcome_of(outcome(request)))
        # The application's test made the function: show its test what is wrong with it.
        except Exception as error:
            return Play(rule, Failure(500, f"a function of the script failed: {type(error).__name__}: {error}"))

    def give_back(self, play: Play) -> None:
        with self._lock:
            if play.rule.times is not None:
                play.rule.times += 1
