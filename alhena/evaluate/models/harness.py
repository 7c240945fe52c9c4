"""The adapter to lm-eval: its tasks, unmodified, on our engine. lm-eval is no dependency of this package: ``pip install lm-eval``.

import lm_eval
model = HarnessModel(EngineModel(Engine.load(folder), turns=False))
lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from alhena.content import Text
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Completion, Continuation, Prompt
from alhena.evaluate.models.likelihood import Request

# Tokens of a completion where a task does not limit it, as in lm-eval.
DEFAULT_TOKENS = 256
# Settings of generation that are understood; others are refused.
KNOWN = {"until", "max_gen_toks", "temperature", "do_sample"}


def _prompt(text: str) -> Prompt:
    return (Text(text),) if text else ()


def _completion(context: str, settings: Mapping[str, Any], seed: int) -> Completion:
    """The request of a task. Raises ValueError for settings that are not understood."""
    if unknown := sorted(settings.keys() - KNOWN):
        raise ValueError(
            f"generation_kwargs of the task: {unknown[0]!r} is not supported; known are {', '.join(sorted(KNOWN))}"
        )
    until = settings.get("until") or []
    stop = (until,) if isinstance(until, str) else tuple(until)
    sampled = settings.get("do_sample", settings.get("temperature", 0) > 0)
    temperature = float(settings.get("temperature", 1.0)) if sampled else 0.0
    limit = int(settings.get("max_gen_toks", DEFAULT_TOKENS))
    return Completion(_prompt(context), limit, tuple(text for text in stop if text), temperature, seed)


class HarnessModel(LM):
    """A model of lm-eval over the two functions of evaluation."""

    def __init__(self, model: EngineModel) -> None:
        super().__init__()
        self._model = model

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation after its context: nats, and whether it is the greedy one."""
        asked = [Continuation(_prompt(context), text) for context, text in (request.args for request in requests)]
        return [(_or_raise(result).nats, _or_raise(result).is_greedy) for result in self._model.log_likelihoods(asked)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of complete texts; longer ones than the context in windows that predict every token once."""
        model, parts, counts = self._model, list[Request](), list[int]()
        beginning = model.beginning()
        # The last token of a beginning predicts the first of the text.
        limit = model.engine.max_prompt_tokens - len(beginning)
        for request in requests:
            tokens = model.engine.encoder.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, beginning[-1], limit, 1)
            of_text = [make_disjoint_window(window) for window in windows]
            if of_text:
                of_text[0] = (beginning, of_text[0][1])
            parts += of_text
            counts.append(len(of_text))
        scored = iter(model.score(parts))
        return [sum(next(scored).nats for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions of contexts until one of the task's texts."""
        asked = [_completion(context, settings, n) for n, (context, settings) in enumerate(r.args for r in requests)]
        return [_or_raise(result).text for result in self._model.complete(asked)]


def _or_raise(result: Any) -> Any:
    """A result. Raises ValueError with the reason why there is none: lm-eval has no place for it."""
    if isinstance(result, str):
        raise ValueError(result)
    return result
