"""Answers to responses of the Gemini wire format: the SDK's types, dumped by alias; one writer for each candidate."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from google.genai import types

from alhena.content import Part, Text, Thought, ToolCall
from alhena.serve.engine import Answer, TokenLogprobs
from alhena.serve.gemini.wire.parts import write_part
from alhena.serve.gemini.wire.request import GenerateRequest
from alhena.serve.gemini.wire.settings.safety_settings import Ratings
from alhena.serve.gemini.wire.signatures import write_signature
from alhena.serve.safety import Classify

FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "malformed call": "MALFORMED_FUNCTION_CALL"}
FINISH_MESSAGES = {
    "MALFORMED_FUNCTION_CALL": "the model wrote a function call that is not of its notation",
    "UNEXPECTED_TOOL_CALL": "the model called a function that tools do not declare",
    "SAFETY": "the answer was blocked by safetySettings",
}
# Stands for the log-probability of a token that could not be sampled: JSON has no infinity.
LEAST_LOGPROB = -1e9


@dataclass(frozen=True)
class Context:
    """What the responses to one request have in common; ``prompt`` is the number of prompt tokens by modality."""

    request: GenerateRequest
    model: str
    prompt: Mapping[str, int] = field(default_factory=dict)
    token_text: Callable[[int], str] = str
    classify: Classify | None = None
    response_id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    create_time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def response(self, content: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """A response as JSON values. ``content`` is that of its one candidate."""
        response = types.GenerateContentResponse(
            model_version=self.model, response_id=self.response_id, create_time=self.create_time, **fields
        )
        out = response.model_dump(mode="json", by_alias=True, exclude_none=True)
        if content:
            # The SDK's own dump of bytes has the alphabet of URLs, which browsers do not read.
            out["candidates"][0] = {"content": content} | out["candidates"][0]
        return out

    def usage(self, answers: Sequence[Answer]) -> types.GenerateContentResponseUsageMetadata:
        """Token counts: the prompt once, the answers together.

        Tokens that were in memory because of other requests are not counted: a response does not depend on these, and does not tell
        what others have asked.
        """
        prompt = sum(self.prompt.values())
        thoughts, images = sum(a.thought_tokens for a in answers), sum(a.image_tokens for a in answers)
        written = sum(a.answer_tokens for a in answers) - thoughts
        return types.GenerateContentResponseUsageMetadata(
            prompt_token_count=prompt,
            cached_content_token_count=min(self.request.cached_tokens, prompt) or None,
            candidates_token_count=written if answers else None,
            thoughts_token_count=thoughts or None,
            total_token_count=prompt + written + thoughts,
            prompt_tokens_details=_details(self.prompt),
            candidates_tokens_details=_details({"TEXT": written - images, "IMAGE": images}) or None,
        )

    def count(self) -> dict[str, Any]:
        """The response of countTokens."""
        usage = self.usage(()).model_dump(mode="json", by_alias=True, exclude_none=True)
        names = ("promptTokensDetails", "cachedContentTokenCount")
        return {"totalTokens": usage["promptTokenCount"]} | {name: usage[name] for name in names if name in usage}

    def blocked_prompt(self) -> dict[str, Any]:
        """The response to a prompt that the safetySettings block."""
        feedback = types.GenerateContentResponsePromptFeedback(
            block_reason=types.BlockedReason.SAFETY,
            block_reason_message="the prompt was blocked by safetySettings",
            safety_ratings=self.request.ratings.written(),
        )
        return self.response(prompt_feedback=feedback, usage_metadata=self.usage(()))


def _details(counts: Mapping[str, int]) -> list[types.ModalityTokenCount]:
    return [
        types.ModalityTokenCount(modality=types.MediaModality(kind), token_count=count)
        for kind, count in counts.items()
        if count
    ]


class CandidateWriter:
    """Writes the parts of one candidate as they arrive, and then how it ended."""

    def __init__(self, context: Context, index: int = 0) -> None:
        self._context, self._index = context, index
        self._ratings = Ratings(context.classify, context.request.thresholds)
        self._declared = {tool.name for tool in context.request.prompt.tools}
        self._thought, self._has_call, self._is_unexpected = "", False, False
        self.ended = False

    @property
    def blocked(self) -> bool:
        return self._ratings.blocked

    def part(self, part: Part) -> dict[str, Any] | None:
        """A part of the response; None for a thought that is not asked for."""
        if isinstance(part, Thought):
            self._thought += part.text
            return write_part(part) if self._context.request.thinking.included else None
        if isinstance(part, Text):
            self._ratings.feed(part.text)
        if not isinstance(part, ToolCall):
            return write_part(part)
        self._is_unexpected |= part.name not in self._declared
        written = write_part(part if part.id else replace(part, id=f"call-{secrets.token_hex(6)}"))
        if self._thought:
            written["thoughtSignature"], self._thought = write_signature(self._thought), ""
        return written

    def event(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream before its last one."""
        return self._context.response(_content(parts), candidates=[types.Candidate(index=self._index)])

    def last(
        self,
        parts: Sequence[dict[str, Any]],
        answer: Answer | None,
        usage: types.GenerateContentResponseUsageMetadata | None,
    ) -> dict[str, Any]:
        """The last event of a candidate, or its complete response; no ``answer``: it was blocked before its end."""
        self._ratings.end()
        self.ended = True
        reason = self._reason(answer)
        candidate = types.Candidate(
            index=self._index,
            finish_reason=types.FinishReason(reason),
            finish_message=FINISH_MESSAGES.get(reason),
            safety_ratings=self._ratings.written(),
        )
        if answer and self._context.request.sampling.logprobs is not None and not self.blocked:
            candidate.logprobs_result, candidate.avg_logprobs = self._logprobs(answer.logprobs)
        content = None if self.blocked else _content(parts)
        return self._context.response(content, candidates=[candidate], usage_metadata=usage)

    def _reason(self, answer: Answer | None) -> str:
        if answer is None or self.blocked:
            return "SAFETY"
        # A scripted answer (alhena.testing) may end for any reason of the API.
        reason = FINISH_REASONS.get(answer.finish, answer.finish)
        return "UNEXPECTED_TOOL_CALL" if self._is_unexpected and reason != "MALFORMED_FUNCTION_CALL" else reason

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> tuple[types.LogprobsResult, float | None]:
        """The log-probabilities of the tokens and their mean."""

        def candidate(token: int, value: float) -> types.LogprobsResultCandidate:
            value = max(value, LEAST_LOGPROB)
            return types.LogprobsResultCandidate(
                token=self._context.token_text(token), token_id=token, log_probability=value
            )

        chosen = [candidate(t.token, t.logprob) for t in tokens]
        top = [
            types.LogprobsResultTopCandidates(candidates=[candidate(*pair) for pair in t.top]) for t in tokens if t.top
        ]
        total = sum(c.log_probability or 0.0 for c in chosen)
        result = types.LogprobsResult(chosen_candidates=chosen, top_candidates=top or None, log_probability_sum=total)
        return result, total / len(chosen) if chosen else None


def _content(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """There is always a part, even if it is an empty text: the SDK drops a turn from its history when one of its events has none."""
    return {"role": "model", "parts": list(parts) or [{"text": ""}]}
