"""Speculative decoding: tokens/s with and without a draft, in interleaved pairs, and how many proposals are accepted.

    python benchmarks/bench_speculative.py TARGET --draft lookup --draft SMALLER_MODEL --tokens 2 4

Each prompt is answered without a draft and with each of them, in turn, for a few rounds; its prompt is in the cache, so that only
tokens are timed. Written to ``benchmarks/results/speculative.json`` under ``--label``: one row for each draft, number of tokens,
kind of prompt, temperature and number of clients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from alhena.content import Content, Text
from alhena.files import write_json
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.decoding.speculative.draft import LOOKUP, Draft, DraftSource
from alhena.serve.engine import Engine

RESULTS = Path(__file__).parent / "results" / "speculative.json"
STORY = (
    "Mara keeps nine goats on the hill above the harbour. Every morning she counts them, fills the long trough with water and "
    "mends the fence where the wind has torn it. Her brother Tomas sells the cheese in the town on Fridays, and brings back salt, "
    "nails and a newspaper. Last winter the old barn lost its roof, and the neighbours came with ladders to build a new one."
)
CODE = (
    "def total(prices, tax):\n    result = 0\n    for price in prices:\n        result += price\n    return result * (1 + tax)\n\n"
    "def mean(prices):\n    result = 0\n    for price in prices:\n        result += price\n    return result / len(prices)\n"
)
PROMPTS = {
    "edit": f"Rename the variable result to amount in this code. Answer with the complete code only.\n\n{CODE}",
    "repeat": f"Repeat this text word for word, but write Mira in place of Mara.\n\n{STORY}",
    "summary": f"Summarize this text in three sentences.\n\n{STORY}",
    "free": "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
}


@dataclass(frozen=True)
class Row:
    """One draft with one kind of prompt: medians over the rounds, and the ratio of each pair's times."""

    draft: str
    tokens: int
    prompt: str
    temperature: float
    clients: int
    plain: float
    drafted: float
    speed_up: float
    accepted: float
    tokens_per_round: float
    same: bool


def timed(engine: Engine, kind: str, sampling: Sampling, clients: int) -> tuple[float, list[object]]:
    """Seconds for the answers of so many clients to one prompt, and the answers."""
    prompts = [[Content("user", (Text(PROMPTS[kind]),))]] * clients
    samplings = [replace(sampling, seed=seed) for seed in range(clients)]
    began = time.perf_counter()
    answers = engine.generate(prompts, samplings)
    return time.perf_counter() - began, [(a.answer_tokens, a.content) for a in answers]


def measure(plain: Engine, drafted: Engine, kind: str, sampling: Sampling, clients: int, rounds: int) -> Row:
    """Both engines in turn."""
    batch, pairs = drafted.batch, list[tuple[float, float]]()
    for engine in (plain, drafted):
        timed(engine, kind, sampling, clients)
    before = batch.acceptance()
    for _ in range(rounds):
        (a, expected), (b, answers) = (timed(e, kind, sampling, clients) for e in (plain, drafted))
        pairs.append((a, b))
    after = batch.acceptance()
    proposed, accepted = (after[name] - before[name] for name in ("proposed", "accepted"))
    count = sum(tokens for tokens, _ in expected)
    times = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return Row(
        draft=drafted.draft.name, tokens=drafted.draft.tokens, prompt=kind, temperature=sampling.temperature,
        clients=clients, plain=round(count / times[0], 1), drafted=round(count / times[1], 1),
        speed_up=round(statistics.median(a / b for a, b in pairs), 2), accepted=round(accepted / max(proposed, 1), 3),
        tokens_per_round=round(count * rounds / max(count * rounds - accepted, 1), 2), same=expected == answers,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--draft", action="append", default=[], help="a model folder, or lookup; repeatable")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4])
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), choices=list(PROMPTS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1])
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--label", required=True)
    a = parser.parse_args()
    plain, rows = Engine.load(a.target, slots=max(a.clients)), list[Row]()
    for name in a.draft:
        loaded = Draft.load(DraftSource(None if name == LOOKUP else Path(name)), plain.encoder)
        for tokens in a.tokens:
            drafted = replace(plain, draft=replace(loaded, tokens=tokens))
            for clients in a.clients:
                for kind in a.prompts:
                    for temperature in a.temperatures:
                        sampling = Sampling(temperature, top_k=64, top_p=0.95, max_tokens=a.new)
                        rows.append(measure(plain, drafted, kind, sampling, clients, a.rounds))
                        print(rows[-1], flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, results | {a.label: [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
