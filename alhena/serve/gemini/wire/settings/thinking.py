"""thinkingConfig: whether the model thinks before it answers, for how long, and whether its thoughts are part of the response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alhena.serve.gemini.wire.fields import (
    Fields,
    WireError,
    not_offered,
    read_flag,
    read_integer,
    read_object,
    read_string,
)

WHERE = "generationConfig.thinkingConfig"
UNSPECIFIED = "THINKING_LEVEL_UNSPECIFIED"
# Tokens of thoughts at a level; None: no limit.
LEVELS: dict[str, int | None] = {"MINIMAL": 0, "LOW": 512, "MEDIUM": 2048, "HIGH": None, "XHIGH": None}


@dataclass(frozen=True)
class Thinking:
    """``is_on`` asks the model to think, in at most ``budget`` tokens; ``included`` asks for its thoughts, if there are any."""

    is_on: bool = False
    included: bool = False
    budget: int | None = None
    # The field that asks for thinking, unless clients send it to models of any kind: those ask for thoughts along with it.
    required: str | None = None

    def for_model(self, thinks: bool) -> Thinking:
        """What a model does of it. Raises WireError where a request insists on thinking and the model cannot."""
        if thinks or not self.is_on:
            return self
        if self.required:
            raise not_offered(f"{WHERE}.{self.required}", ": the loaded model does not think before it answers")
        return Thinking()


def read_thinking(config: Fields) -> Thinking:
    """The thinkingConfig of a generationConfig; off by default. Raises WireError for a budget or a level that does not exist."""
    fields = read_object(
        config.get("thinkingConfig", {}), WHERE, ("includeThoughts", "thinkingBudget", "thinkingLevel")
    )
    level = read_string(fields.get("thinkingLevel", UNSPECIFIED), f"{WHERE}.thinkingLevel", 64).upper()
    if level != UNSPECIFIED and level not in LEVELS:
        raise WireError(400, f"{WHERE}.thinkingLevel is {level}; there are {', '.join(LEVELS)}")
    if "thinkingBudget" in fields and level != UNSPECIFIED:
        raise WireError(400, f"{WHERE}: thinkingBudget and thinkingLevel exclude each other")
    budget = _budget(fields, level)
    included = read_flag(fields, WHERE, "includeThoughts")
    name: Any = next((name for name in ("thinkingBudget", "thinkingLevel") if name in fields), None)
    is_on = budget != 0 and (included or (name is not None and level != UNSPECIFIED) or "thinkingBudget" in fields)
    return Thinking(is_on, included and is_on, budget if is_on else None, None if included or not is_on else name)


def _budget(fields: Fields, level: str) -> int | None:
    """Tokens of thoughts; None: no limit."""
    if "thinkingBudget" not in fields:
        return LEVELS.get(level)
    budget = read_integer(fields, WHERE, "thinkingBudget", 0)
    if budget < -1:
        raise WireError(400, f"{WHERE}.thinkingBudget must be -1 or more")
    return None if budget == -1 else budget
