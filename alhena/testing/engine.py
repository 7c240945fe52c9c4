"""An engine without a model, and a scheduler that plays the script of an offline Gemini API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

from alhena.batch import Example
from alhena.content import Content, Part, Text, Thought, Tool
from alhena.serve.answer import Answer, Failed, Prompt
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.scheduler import Generation, Item, Scheduler
from alhena.testing.encoder import CharacterEncoder, character_encoder
from alhena.testing.script import Play, Reply
from alhena.tokens.text.text_stream import join

MAX_PROMPT_TOKENS = 1 << 20
# The engine's names of finish reasons.
FINISHES: Mapping[str, str] = MappingProxyType({"STOP": "stop", "MAX_TOKENS": "length"})
# What the request that is being answered is to get.
current_play: ContextVar[Play | None] = ContextVar("current_play", default=None)


@dataclass(frozen=True)
class ScriptedAnswer(Answer):
    """An answer that may end for any reason of the API; the server writes a reason that is not the engine's as it is."""

    finish: str  # type: ignore[assignment]


@dataclass(frozen=True)
class ScriptedEngine:
    """An engine without a model: it encodes prompts, and its scheduler answers them."""

    default_sampling: Sampling = Sampling()
    max_prompt_tokens: int = MAX_PROMPT_TOKENS

    @property
    def encoder(self) -> CharacterEncoder:
        return character_encoder()

    def encode(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Example:
        """Raises ValueError when a medium does not decode."""
        return self.encoder.prompt(prompt.contents)

    def stream(
        self, prompt: Example, sampling: Sampling, stride: int, cancelled: Callable[[], bool]
    ) -> Iterator[Part | Answer]:
        raise NotImplementedError("a ScriptedScheduler answers")


class ScriptedScheduler:
    """Plays the outcome of the current request. ``model`` answers requests that have none."""

    def __init__(self, model: Scheduler | None = None) -> None:
        self._model = model
        self._running: set[asyncio.Task[None]] = set()
        self.observer: Callable[[], Callable[[Item], None]] | None = None

    def start(self) -> None:
        if self._model:
            self._model.start()

    def stop(self) -> None:
        if self._model:
            self._model.stop()

    @property
    def waiting(self) -> int:
        return self._model.waiting if self._model else 0

    def submit(self, example: Example, sampling: Sampling, stride: int = 1, tools: tuple[Tool, ...] = ()) -> Generation:
        """Raises WireError 400 when neither the script nor a model has an answer."""
        play = current_play.get()
        if play is None and self._model:
            return self._model.submit(example, sampling, stride, tools)
        if play is None or not isinstance(play.outcome, Reply):
            message = "the script has no answer to this request: add one with reply()"
            raise WireError(400, message, "FAILED_PRECONDITION")
        play.delivered = True
        generation = Generation(example, sampling, stride)
        generation.observe = self.observer() if self.observer else None
        task = asyncio.get_running_loop().create_task(_play(generation, play.outcome))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return generation


def pieces(reply: Reply) -> list[Part]:
    """The parts of an answer as a model streams them: text word by word.

    >>> pieces(Reply((Text("It is  red."), Thought("So."))))
    [Text(text='It '), Text(text='is  '), Text(text='red.'), Thought(text='So.')]
    """
    out: list[Part] = []
    for part in reply.parts:
        if isinstance(part, Text | Thought):
            out += [type(part)(word) for word in re.findall(r"\s*\S+\s*", part.text) or [part.text]]
        else:
            out.append(part)
    return out


async def _play(generation: Generation, reply: Reply) -> None:
    """Gives the parts of a reply to a generation; an error becomes its last item, so that no client waits for ever."""
    try:
        parts = pieces(reply)
        for part in parts:
            await asyncio.sleep(reply.delay)
            if generation.is_cancelled():
                return
            generation.put(part)
        generation.put(_answer(reply, parts, len(generation.example.tokens)))
    except Exception as error:
        generation.put(Failed(f"the reply cannot be given: {error}"))


def _answer(reply: Reply, parts: list[Part], prompt_tokens: int) -> Answer:
    answer, count = Content("model", join(parts)), character_encoder().tokens
    tokens = sum(len(count(part)) for part in answer.parts)
    thoughts = sum(len(count(part)) for part in answer.parts if isinstance(part, Thought))
    finish = FINISHES.get(reply.finish, reply.finish)
    return ScriptedAnswer(answer, finish, prompt_tokens, tokens, thoughts)
