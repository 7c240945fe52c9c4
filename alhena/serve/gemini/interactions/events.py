"""Events of an interaction: responses of generateContent as steps that begin, grow and end; and the steps that events add up to.

    interaction.created   step.start   step.delta …   step.stop   …   interaction.completed

Events are the one record of what a model wrote: streams send them, a resumed stream sends the rest of them, and the steps of the
resource are folded from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alhena.serve.gemini.interactions.steps import Json
from alhena.serve.store import new_id

# The status by finishReason; any other reason is a failure.
FINISHED = {"STOP": "completed", "MAX_TOKENS": "incomplete"}


class StepWriter:
    """Writes the events of one answer, response by response."""

    def __init__(self) -> None:
        self.status, self.usage, self.error = "in_progress", Json(), Json()
        # The HTTP code of an engine that failed.
        self.code: int | None = None
        self._index, self._open, self._has_calls = -1, "", False

    def write(self, response: Mapping[str, Any]) -> Iterator[Json]:
        """The events of a response, which also may set the status, the usage and the error."""
        if "error" in response:
            yield from self._stop()
            self.code = response["error"]["code"]
            self.fail(response["error"].get("status", "INTERNAL"), response["error"]["message"])
            return
        candidate: Mapping[str, Any] = next(iter(response.get("candidates", ())), {})
        for part in candidate.get("content", {}).get("parts", ()):
            yield from self._part(part)
        if "usageMetadata" in response:
            self.usage = write_usage(response["usageMetadata"])
        blocked = response.get("promptFeedback", {}).get("blockReason")
        reason = candidate.get("finishReason") or blocked
        if reason:
            yield from self._stop()
            self._finish(reason, candidate.get("finishMessage", f"the answer was ended: {reason}"))

    def _finish(self, reason: str, message: str) -> None:
        if reason not in FINISHED:
            self.fail(reason, message)
        else:
            self.status = "requires_action" if reason == "STOP" and self._has_calls else FINISHED[reason]

    def fail(self, code: str, message: str) -> None:
        self.status, self.error = "failed", {"code": code.lower(), "message": message}

    def _part(self, part: Mapping[str, Any]) -> Iterator[Json]:
        if "functionCall" in part:
            if "thoughtSignature" in part:
                yield from self._start({"type": "thought"})
                yield self._delta({"type": "thought_signature", "signature": part["thoughtSignature"]})
            yield from self._call(part["functionCall"])
        elif "inlineData" in part:
            yield from self._start({"type": "model_output"})
            blob = part["inlineData"]
            kind = blob["mimeType"].split("/")[0]
            yield self._delta({"type": kind, "mime_type": blob["mimeType"], "data": blob["data"]})
        elif part.get("thought") and part.get("text"):
            yield from self._start({"type": "thought"})
            yield self._delta({"type": "thought_summary", "content": {"type": "text", "text": part["text"]}})
        elif part.get("text"):
            yield from self._start({"type": "model_output"})
            yield self._delta({"type": "text", "text": part["text"]})

    def _call(self, call: Mapping[str, Any]) -> Iterator[Json]:
        self._has_calls = True
        identity = call.get("id") or f"call_{new_id()}"
        yield from self._stop()
        yield from self._start({"type": "function_call", "id": identity, "name": call["name"], "arguments": {}})
        arguments = json.dumps(call.get("args", {}), ensure_ascii=False)
        yield self._delta({"type": "arguments_delta", "arguments": arguments})
        yield from self._stop()

    def _start(self, step: Json) -> Iterator[Json]:
        if self._open != step["type"]:
            yield from self._stop()
            self._open, self._index = step["type"], self._index + 1
            yield {"event_type": "step.start", "index": self._index, "step": step}

    def _delta(self, delta: Json) -> Json:
        return {"event_type": "step.delta", "index": self._index, "delta": delta}

    def _stop(self) -> Iterator[Json]:
        if self._open:
            self._open = ""
            yield {"event_type": "step.stop", "index": self._index}


def write_usage(usage: Mapping[str, Any]) -> Json:
    """Token counts of a response, in the names of this API."""
    prompt, output = usage.get("promptTokenCount", 0), usage.get("candidatesTokenCount", 0)
    thoughts = usage.get("thoughtsTokenCount", 0)
    details = {"input": "promptTokensDetails", "output": "candidatesTokensDetails", "cached": "cacheTokensDetails"}
    by_modality = {
        f"{name}_tokens_by_modality": [
            {"modality": count["modality"].lower(), "tokens": count["tokenCount"]} for count in usage[key]
        ]
        for name, key in details.items()
        if usage.get(key)
    }
    return {
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "total_thought_tokens": thoughts,
        "total_cached_tokens": usage.get("cachedContentTokenCount", 0),
        "total_tool_use_tokens": 0,
        "total_tokens": prompt + output + thoughts,
        **by_modality,
    }


def fold(events: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The steps that events add up to.

    >>> fold([{"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
    ...       {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "a"}},
    ...       {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "b"}}])
    [{'type': 'model_output', 'content': [{'type': 'text', 'text': 'ab'}]}]
    """
    steps: list[Json] = []
    for event in events:
        if event["event_type"] == "step.start":
            steps.append(dict(event["step"]))
        elif event["event_type"] == "step.delta":
            _grow(steps[event["index"]], event["delta"])
    return steps


def _grow(step: Json, delta: Mapping[str, Any]) -> None:
    if delta["type"] == "arguments_delta":
        step["arguments"] = json.loads(delta["arguments"])
        return
    if delta["type"] == "thought_signature":
        step["signature"] = delta["signature"]
        return
    is_summary = delta["type"] == "thought_summary"
    contents = step.setdefault("summary" if is_summary else "content", [])
    content = dict(delta["content"] if is_summary else delta)
    if content["type"] == "text" and contents and contents[-1]["type"] == "text":
        contents[-1]["text"] += content["text"]
    else:
        contents.append(content)
