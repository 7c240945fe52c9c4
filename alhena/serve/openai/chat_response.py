"""Responses of generateContent as a chat.completion, or as chunks of one."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alhena.serve.openai.errors import error_body
from alhena.serve.store import new_id

Json = dict[str, Any]
# finish_reason by Google's finishReason; a call makes a stop tool_calls, and any other reason is a filter's.
FINISH = {
    "STOP": "stop", "MAX_TOKENS": "length", "MALFORMED_FUNCTION_CALL": "stop", "UNEXPECTED_TOOL_CALL": "tool_calls",
}  # fmt: skip


@dataclass
class Reply:
    """What the responses to one request share, and the calls of each choice that have been written."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))
    calls: dict[int, int] = field(default_factory=dict)

    def head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    # ── One response ──────────────────────────────────────────────────────────────────────────────────────────

    def completion(self, response: Mapping[str, Any]) -> Json:
        """The chat.completion of a response of generateContent."""
        choices = [self._choice(candidate) for candidate in _candidates(response)]
        usage = write_usage(response.get("usageMetadata", {}))
        return {**self.head("chat.completion"), "choices": choices, "usage": usage, "system_fingerprint": None}

    def _choice(self, candidate: Mapping[str, Any]) -> Json:
        delta = self._delta(candidate)
        message = {"role": "assistant", "content": None, "refusal": None, **delta}
        for call in message.get("tool_calls", ()):
            del call["index"]
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
        return {
            "index": candidate.get("index", 0),
            "message": message,
            "logprobs": write_logprobs(candidate),
            "finish_reason": self._finish(candidate),
        }

    # ── A stream ──────────────────────────────────────────────────────────────────────────────────────────────

    async def chunks(self, events: AsyncIterator[Mapping[str, Any]], include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events of a stream of responses."""
        begun, usage = set[int](), dict[str, Any]()
        # With usage at the end, every other chunk says that it has none.
        head = self.head("chat.completion.chunk") | ({"usage": None} if include_usage else {})
        async for event in events:
            if "error" in event:
                error = event["error"]
                yield _event(error_body(error["code"], error["message"]))
                return
            usage = event.get("usageMetadata", usage)
            for candidate in _candidates(event):
                index = candidate.get("index", 0)
                first = {} if index in begun else {"role": "assistant", "content": ""}
                begun.add(index)
                choice = {
                    "index": index,
                    "delta": {**first, **self._delta(candidate)},
                    "logprobs": write_logprobs(candidate),
                    "finish_reason": self._finish(candidate),
                }
                yield _event({**head, "choices": [choice]})
        if include_usage:
            yield _event({**head, "choices": [], "usage": write_usage(usage)})
        yield "data: [DONE]\n\n"

    def _delta(self, candidate: Mapping[str, Any]) -> Json:
        """The parts of a candidate as fields of a message: text, thoughts, calls, pictures."""
        index, delta = candidate.get("index", 0), Json()
        for part in candidate.get("content", {}).get("parts", ()):
            if "functionCall" in part:
                delta.setdefault("tool_calls", []).append(self._call(index, part))
            elif "inlineData" in part:
                blob = part["inlineData"]
                url = f"data:{blob['mimeType']};base64,{blob['data']}"
                delta.setdefault("images", []).append({"type": "image_url", "image_url": {"url": url}})
            elif part.get("text"):
                name = "reasoning_content" if part.get("thought") else "content"
                delta[name] = delta.get(name, "") + part["text"]
        if "finishMessage" in candidate:
            delta["refusal"] = candidate["finishMessage"]
        return delta

    def _call(self, index: int, part: Mapping[str, Any]) -> Json:
        number, call = self.calls.get(index, 0), part["functionCall"]
        self.calls[index] = number + 1
        function = {"name": call["name"], "arguments": json.dumps(call.get("args", {}), ensure_ascii=False)}
        identity = call.get("id") or f"call_{new_id()}"
        written = {"index": number, "id": identity, "type": "function", "function": function}
        if "thoughtSignature" in part:
            written["extra_content"] = {"google": {"thought_signature": part["thoughtSignature"]}}
        return written

    def _finish(self, candidate: Mapping[str, Any]) -> str | None:
        reason = candidate.get("finishReason")
        if reason == "STOP" and self.calls.get(candidate.get("index", 0)):
            return "tool_calls"
        return FINISH.get(reason, "content_filter") if reason else None


def _candidates(response: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The candidates of a response; of a blocked prompt, one without parts."""
    blocked = response.get("promptFeedback", {}).get("blockReason")
    if blocked and not response.get("candidates"):
        return [{"finishReason": blocked, "finishMessage": f"the prompt was blocked: {blocked}"}]
    return response.get("candidates", ())


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def write_usage(usage: Mapping[str, Any]) -> Json:
    """Token counts; thoughts are part of the completion's, as OpenAI counts them."""
    prompt, thoughts = usage.get("promptTokenCount", 0), usage.get("thoughtsTokenCount", 0)
    completion = usage.get("candidatesTokenCount", 0) + thoughts
    audio = sum(d["tokenCount"] for d in usage.get("promptTokensDetails", ()) if d["modality"] == "AUDIO")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.get("cachedContentTokenCount", 0), "audio_tokens": audio},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def write_logprobs(candidate: Mapping[str, Any]) -> Json | None:
    """The log-probabilities of a candidate's tokens, where it has them."""
    result = candidate.get("logprobsResult")
    if not result:
        return None
    chosen = result.get("chosenCandidates", ())
    top = result.get("topCandidates") or [{}] * len(chosen)
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in ranked.get("candidates", ())]}
        for token, ranked in zip(chosen, top, strict=False)
    ]
    return {"content": content, "refusal": None}


def _logprob(candidate: Mapping[str, Any]) -> Json:
    text = candidate.get("token", "")
    return {"token": text, "logprob": candidate.get("logProbability", 0.0), "bytes": list(text.encode())}
