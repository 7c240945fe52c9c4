"""generateContent and streamGenerateContent: the candidates of a request, as one response or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from alhena.batch import Example
from alhena.content import Part, Tool
from alhena.serve.answer import Answer, ServingError
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.gemini.wire.fields import WireError, wire_error
from alhena.serve.gemini.wire.request import GenerateRequest
from alhena.serve.gemini.wire.responses import CandidateWriter, Context
from alhena.serve.scheduler import Generation

# Queues a generation: the prompt, how it is sampled, tokens between two checks for cancellation, tools that it may call.
Submit = Callable[[Example, Sampling, int, tuple[Tool, ...]], Generation]


class Candidates:
    """The generations of one request, one a candidate, each with a seed of its own."""

    def __init__(self, submit: Submit, request: GenerateRequest, example: Example, stride: int = 1) -> None:
        """Queues them all. Raises WireError when the queue does not take them."""
        self.generations: list[Generation] = []
        if request.ratings.blocked:
            return
        try:
            for index in range(request.candidates):
                sampling = replace(request.sampling, seed=request.sampling.seed + index)
                self.generations.append(submit(example, sampling, stride, request.prompt.tools))
        except ServingError as error:
            self.cancel()
            raise wire_error(error) from None

    def cancel(self) -> None:
        for generation in self.generations:
            generation.cancel()

    async def answers(self) -> list[Answer]:
        """All answers, complete."""
        try:
            return [await generation.answer() for generation in self.generations]
        except (ServingError, ValueError) as error:
            raise wire_error(error) from None
        finally:
            self.cancel()

    async def items(self) -> AsyncIterator[tuple[int, Part | Answer | WireError]]:
        """The parts and answers of all candidates with their index, as they arrive."""
        arrived: asyncio.Queue[tuple[int, Part | Answer | WireError]] = asyncio.Queue()

        async def collect(index: int, generation: Generation) -> None:
            try:
                async for item in generation:
                    arrived.put_nowait((index, item))
            except (ServingError, ValueError) as error:
                arrived.put_nowait((index, wire_error(error)))

        tasks = [asyncio.create_task(collect(*numbered)) for numbered in enumerate(self.generations)]
        running = len(tasks)
        try:
            while running:
                index, item = await arrived.get()
                running -= isinstance(item, Answer | WireError)
                yield index, item
        finally:
            for task in tasks:
                task.cancel()


def write_answers(context: Context, answers: list[Answer]) -> dict[str, Any]:
    """The complete response."""
    if context.request.ratings.blocked:
        return context.blocked_prompt()
    written: list[dict[str, Any]] = []
    for index, answer in enumerate(answers):
        writer = CandidateWriter(context, index)
        parts = [part for part in map(writer.part, answer.content.parts) if part is not None]
        written.append(writer.last(parts, answer, context.usage(answers)))
    return written[0] | {"candidates": [response["candidates"][0] for response in written]}


async def stream_events(context: Context, candidates: Candidates) -> AsyncIterator[dict[str, Any]]:
    """Events of a request, those of each candidate one behind: its last one then has a part and the reason; the very last, token counts."""
    if context.request.ratings.blocked:
        yield context.blocked_prompt()
        return
    writers = [CandidateWriter(context, index) for index in range(len(candidates.generations))]
    pending: dict[int, dict[str, Any]] = {}
    answers: list[Answer] = []
    async for index, item in candidates.items():
        writer = writers[index]
        if writer.ended:
            continue
        if isinstance(item, WireError):
            # The status has been sent already.
            yield item.body()
            return
        if not isinstance(item, Answer):
            part = writer.part(item)
            if part is not None and not writer.blocked:
                if index in pending:
                    yield writer.event([pending[index]])
                pending[index] = part
            if not writer.blocked:
                continue
            candidates.generations[index].cancel()
        else:
            answers.append(item)
        is_last = all(other.ended or other is writer for other in writers)
        held = [pending[index]] if index in pending else []
        yield writer.last(held, item if isinstance(item, Answer) else None, context.usage(answers) if is_last else None)
