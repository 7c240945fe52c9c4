"""Protocols on a model whose answers are given: votes, routing, and a threshold that only the validation split decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from alhena.content import Text
from alhena.evaluate.benchmarks.protocols import (
    Asked,
    Outcome,
    Protocol,
    Votes,
    choose_threshold,
    powers_up_to,
    routed,
    run,
)
from alhena.evaluate.models.interface import Completed, Completion, Continuation, Likelihood, no_advance, prompt_text
from alhena.evaluate.tasks.catalog import BENCHMARKS
from alhena.evaluate.tasks.items import Item
from alhena.evaluate.tasks.mathematics import GSM8K, STEPS

MMLU, HELLASWAG = BENCHMARKS["mmlu"], BENCHMARKS["hellaswag"]


@dataclass
class Given:
    """A model that samples given answers with chain of thought, and gives others without; counts what it is asked."""

    name: str = "given"
    samples: dict[str, list[str]] = field(default_factory=dict)
    direct: dict[str, str] = field(default_factory=dict)
    asked: list[Completion | Continuation] = field(default_factory=list)

    def _question(self, text: str) -> str:
        return text.rsplit("Q: ", 1)[1].split("\n")[0]

    def complete(self, requests: Sequence[Completion], advance=no_advance) -> list[Completed | str]:
        self.asked += requests
        turns: dict[str, int] = {}
        out: list[Completed | str] = []
        for request in requests:
            text = prompt_text(request.prompt)
            question = self._question(text)
            if text.endswith(STEPS):
                n = turns[question] = turns.get(question, -1) + 1
                out.append(Completed(f" Well. The answer is {self.samples[question][n]}.", 9, False))
            else:
                out.append(Completed(self.direct[question], 1, False))
        return out

    def log_likelihoods(self, requests: Sequence[Continuation], advance=no_advance) -> list[Likelihood | str]:
        self.asked += requests
        nats = {"long and right": -3.0, "no": -2.0, "wrong": -2.5}
        out: list[Likelihood | str] = []
        for request in requests:
            text = request.text.strip()
            known = text in nats
            out.append(Likelihood(nats[text], len(text.split()), False) if known else "too long")
        return out


def items(*answers: str, prefix: str = "t") -> list[Item]:
    return [Item(f"{prefix}{n}", f"{prefix} question {n}", (answer,)) for n, answer in enumerate(answers)]


def asked(of: Sequence[Item], shots: Sequence[Item] = ()) -> Asked:
    return Asked(GSM8K, of, shots)


def test_a_majority_counts_every_sample_and_the_earliest_answer_wins_a_tie():
    item = items("1")[0]
    assert Votes(item, ("2", "1", "", "1")).majority() == ("1", 0.5)
    assert Votes(item, ("2", "1", "1", "2")).majority() == ("2", 0.5)
    assert Votes(item, ("2", "1", "1", "2")).majority(3) == ("1", pytest.approx(2 / 3))
    assert Votes(item, ("", "")).majority() == ("", 0.0)
    expression = BENCHMARKS["math"].vote_key
    assert Votes(item, ("0.5", "3", r"\frac12"), expression).majority() == ("0.5", pytest.approx(2 / 3))


def test_the_majority_answers_only_above_the_threshold():
    item = items("1")[0]
    direct = Outcome(item.id, "", "1", "9", 0.0)
    votes = Votes(item, ("1", "1", "1", "2"))
    above = routed(votes, direct, 0.74, GSM8K.metric.score)
    assert (above.answer, above.score, above.by_majority, above.share) == ("1", 1.0, True, 0.75)
    equal = routed(votes, direct, 0.75, GSM8K.metric.score)
    assert (equal.answer, equal.score, equal.by_majority) == ("9", 0.0, False)
    assert not routed(Votes(item, ("", "")), direct, 0.0, GSM8K.metric.score).by_majority


def routed_model() -> Given:
    """Of validation and test alike: samples that agree are right, others wrong; direct answers are the other way round."""
    samples, direct = {}, {}
    for prefix in ("v", "t"):
        for n in range(6):
            agree = n < 3
            samples[f"{prefix} question {n}"] = ["7"] * 8 if agree else ["8", "8", "8", "1", "2", "3", "4", "5"]
            direct[f"{prefix} question {n}"] = " The answer is 0." if agree else " The answer is 7."
    return Given(samples=samples, direct=direct)


def test_routing_beats_both_where_consistency_tells_right_from_wrong():
    test, validation = items(*"777777"), items(*"777777", prefix="v")
    result = run(routed_model(), asked(test), asked(validation), Protocol("routed", 0, 8))
    assert [o.score for o in result.outcomes] == [1.0] * 6
    assert result.facts["threshold"] == 3 / 8
    last = result.facts["by_k"][-1]
    assert (last["k"], last["greedy"], last["majority"], last["routed"]) == (8, 50.0, 50.0, 100.0)
    assert result.facts["routing"] == {
        "majority": {"items": 3, "majority": 100.0, "direct": 0.0},
        "direct": {"items": 3, "majority": 0.0, "direct": 100.0},
    }
    assert [row["k"] for row in result.facts["by_k"]] == [1, 2, 4, 8]


def test_the_threshold_does_not_depend_on_the_test_split():
    """Other references of the test split: another score, the same thresholds."""
    validation = items(*"777777", prefix="v")
    facts = [
        run(routed_model(), asked(items(*of)), asked(validation), Protocol("routed", 0, 8)).facts
        for of in ("777777", "888888")
    ]
    assert [row["threshold"] for row in facts[0]["by_k"]] == [row["threshold"] for row in facts[1]["by_k"]]
    assert facts[0]["by_k"][-1]["routed"] != facts[1]["by_k"][-1]["routed"]
    with pytest.raises(ValueError, match="validation split, which has no items"):
        run(routed_model(), asked(items("7")), asked([]), Protocol("routed", 0, 8))
    given = run(routed_model(), asked(items("7")), asked([]), Protocol("routed", 0, 8, threshold=0.9))
    assert given.facts["threshold"] == 0.9


def test_a_threshold_among_equals_is_the_smallest():
    votes = [Votes(item, ("1",)) for item in items("1", "1")]
    right = [Outcome(v.item.id, "", "1", "1", 1.0) for v in votes]
    assert choose_threshold(votes, right, GSM8K.metric.score) == 0.0
    wrong_votes = [Votes(item, ("2", "3")) for item in items("1", "1")]
    assert choose_threshold(wrong_votes, right, GSM8K.metric.score) == 0.5


def test_majority_greedy_and_chain_of_thought():
    model = routed_model()
    for kind, expected in {
        "majority": [1, 1, 1, 0, 0, 0],
        "cot": [1, 1, 1, 0, 0, 0],
        "greedy": [0, 0, 0, 1, 1, 1],
    }.items():
        result = run(model, asked(items(*"777777")), asked([]), Protocol(kind, 0, 8))
        assert [o.score for o in result.outcomes] == expected
    sampled = [request for request in model.asked if isinstance(request, Completion) and request.temperature]
    assert len({request.seed for request in sampled}) == 48
    assert powers_up_to(6) == [1, 2, 4, 6]


def test_choices_by_likelihood_and_by_likelihood_of_a_byte():
    """What cannot be scored counts as wrong, with the reason."""
    choices = ("no", "long and right")
    good = Item("a", "x", ("long and right",), choices)
    bad = replace(good, id="b", choices=("no", "other"))
    of = Asked(HELLASWAG, [good, bad], [])
    result = run(Given(), of, of, Protocol("choices", 0))
    assert [o.score for o in result.outcomes] == [1.0, 0.0]
    assert result.outcomes[1].reason == "too long"
    assert result.facts["score_by_normalization"] == {"none": 0.0, "tokens": 50.0, "bytes": 50.0}
    with pytest.raises(ValueError, match="has no choices"):
        run(Given(), asked(items("7")), asked([]), Protocol("choices", 0))


def test_shots_are_of_the_group_come_first_and_are_never_the_question_itself():
    shots = [Item(f"s{n}", f"shot {n}", ("1",), group="ab"[n % 2], solution="because") for n in range(6)]
    of = Asked(BENCHMARKS["mgsm"], [replace(shots[0], id="q", question="mine", group="a")], shots)
    assert [shot.id for shot in of.shots_of(of.items[0], 3)] == ["s0", "s2", "s4"]
    assert [shot.id for shot in of.shots_of(replace(shots[0], id="other"), 2)] == ["s2", "s4"]
    with pytest.raises(ValueError, match="3 examples for shots for a; --shots 3 is the most"):
        of.shots_of(of.items[0], 4)
    prompt = GSM8K.reasoned.prompt(of.items[0], of.shots_of(of.items[0], 1))
    assert prompt == (Text(f"Q: shot 0\nA:{STEPS} because The answer is 1.\n\nQ: mine\nA:{STEPS}"),)


def test_settings_out_of_range_are_refused():
    for bad in ({"samples": 0}, {"temperature": 0.0}, {"threshold": 2.0}, {"shots": -1}):
        with pytest.raises(ValueError, match="can be read"):
            Protocol("cot", **({"shots": 0} | bad))
    with pytest.raises(ValueError, match="no chain of thought"):
        BENCHMARKS["humaneval"].form("cot")
