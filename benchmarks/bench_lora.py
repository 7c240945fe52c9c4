"""LoRA on a real task with the real Gemma 3 270M: what users of a virtual assistant ask for, before and after; tokens/s and memory.

    python benchmarks/bench_lora.py prepare --archive sgd_train4_dev9.tar.xz --work FOLDER
    python benchmarks/bench_lora.py tune --model models/gemma --work FOLDER
    python benchmarks/bench_lora.py steps --model models/gemma --quantized models/gemma-int4 --work FOLDER

The documents are turns of the Schema-Guided Dialogue dataset (Rastogi et al. 2020): the turn, the two before it, and as the answer the
intent with the details that the turn gives, as in ``FindRestaurants; city=Palo Alto``. Every tenth dialogue is held out. ``tune`` runs
the commands as a user would, each in a process of its own; ``steps`` compares a few steps of adapters, of adapters beside a 4-bit base,
and of all weights. Results are added to benchmarks/results/lora.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

OUT = Path(__file__).parent / "results" / "lora.json"
QUESTION = "Intent and details:"
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Prepare:
    """Write the documents, and curate them."""

    archive: Path  # with train/ and dev/ of the dataset
    work: Path  # folder for the documents
    held_out: int = 400  # held-out documents

    def __call__(self) -> None:
        lines: dict[str, list[str]] = {"train": [], "held_out": []}
        for number, dialogue in enumerate(_dialogues(self.archive)):
            lines["train" if number % HELD_OUT_EVERY else "held_out"] += map(json.dumps, _documents(dialogue))
        order = np.random.default_rng(0).permutation(len(lines["held_out"]))[: self.held_out]
        lines["held_out"] = [lines["held_out"][i] for i in sorted(order)]
        for name, of_split in lines.items():
            (self.work / name).mkdir(parents=True, exist_ok=True)
            (self.work / name / "manifest.jsonl").write_text("\n".join(of_split) + "\n")
        held_out = str(self.work / "curated" / "held_out")
        _run(["curate", str(self.work / "held_out"), "--out", held_out, "--held-out"])
        _run(["curate", str(self.work / "train"), "--out", str(self.work / "curated/train"), "--evaluation", held_out])


@dataclass(frozen=True)
class Tune:
    """The complete tuning, measured before and after."""

    model: Path  # an imported model
    work: Path  # folder of `prepare`
    name: str = "intents"  # name of the tuned model
    steps: int = 200
    batch_size: int = 4  # sequences of 512 tokens
    learning_rate: float = 5e-4
    rank: int = 16

    def __call__(self) -> None:
        held_out, out = self.work / "curated" / "held_out", dict[str, Any]()
        settings = {
            "lora": self.rank,
            "steps": self.steps,
            "batch-size": self.batch_size,
            "learning-rate": self.learning_rate,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + ["--name", self.name]
        for name, folder in (("before", self.model), ("after", self.model.parent / self.name)):
            if name == "after":
                out["tuning"] = _tuned(self.model, self.work, flags)
            found = _run(["evaluate", str(folder), "--data", str(held_out)])
            loss = subprocess.run(
                [sys.executable, __file__, "loss", "--model", str(folder), "--work", str(self.work)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            results = folder.parent.parent / "held_out" / folder.name
            answers = [json.loads(line) for line in (results / "answers.jsonl").read_text().splitlines()]
            out[name] = {**json.loads(loss.stdout.splitlines()[-1]), **found, **_scores(results, answers)}
            print(name, out[name], flush=True)
        _add({"lora": {**settings, "load": round(os.getloadavg()[0], 1), **out}})


@dataclass(frozen=True)
class Loss:
    """Held-out loss of the answers in nats per token, and how many answers greedy decoding would give; prints a line of JSON.

    Greedy decoding gives an answer when each of its tokens is the most probable one after those before it: one forward pass tells it.
    """

    model: Path
    work: Path

    def __call__(self) -> None:
        from alhena.align.sft import shape_for
        from alhena.model.storage.folders import load_model
        from alhena.tokens.examples.loader import batches_in_order
        from alhena.tokens.examples.tokenize import Encoding
        from alhena.train.mixture import open_examples
        from alhena.train.step import eval_step
        from alhena.tuning import encode

        params, c = load_model(self.model)
        shape, out = shape_for(c, 4, 512), self.work / "encoded"
        if not out.exists():
            encode(self.work / "curated" / "held_out", out, Encoding(self.model, shape.tokens), "held-out answers")
        right, nats, weight = list[bool](), 0.0, 0.0
        for batch in batches_in_order(open_examples(out), shape):
            sums = eval_step(params, batch, c)
            nats, weight = nats + float(sums.nats.sum()), weight + float(sums.weight.sum())
            right += _greedy_answers(params, c, batch)
        match = round(100 * float(np.mean(right)), 1)
        print(json.dumps({"answers": len(right), "nats": round(nats / weight, 4), "greedy_match": match}))


def _greedy_answers(params: Any, c: Any, batch: Any) -> list[bool]:
    """For each document of a packed batch whether every token of its answer is the most probable one."""
    import jax

    from alhena.model import model

    forward = jax.jit(model.forward, static_argnums=1)
    hidden, learned = np.asarray(forward(params, c, batch)), batch.weights > 0
    rows, best = hidden[learned], list[np.ndarray]()
    most_probable = jax.jit(lambda params, h: model.logits(params, c, h).argmax(-1))
    for block in np.split(np.pad(rows, ((0, -len(rows) % 64), (0, 0))), -(-len(rows) // 64)):
        best.append(np.asarray(most_probable(params, block)))
    wrong = np.concatenate(best)[: len(rows)] != batch.targets[learned]
    documents = np.stack([np.nonzero(learned)[0], batch.segments[learned]])
    return [not wrong[(document == documents.T).all(1)].any() for document in np.unique(documents, axis=1).T]


@dataclass(frozen=True)
class Steps:
    """A few steps of each kind of tuning: tokens/s and peak memory."""

    model: Path  # an imported model
    work: Path  # folder of `prepare`
    quantized: Path | None = None  # the same model, imported with 4-bit weights
    steps: int = 15
    rank: int = 16

    def __call__(self) -> None:
        lora = ["--lora", str(self.rank)]
        kinds = {"lora": (self.model, lora), "all_weights": (self.model, list[str]())}
        if self.quantized:
            kinds["qlora"] = self.quantized, lora
        for name, (base, flags) in kinds.items():
            found = _tuned(base, self.work, [*flags, "--steps", str(self.steps), "--name", f"steps-{name}"])
            print(name, found, flush=True)
            _add({"short": {name: {"steps": self.steps, **found}}})


def _dialogues(archive: Path) -> Iterator[list[dict[str, Any]]]:
    """The turns of each dialogue."""
    with tarfile.open(archive) as files:
        for member in files:
            if "/dialogues_" in member.name and (file := files.extractfile(member)):
                yield from (dialogue["turns"] for dialogue in json.load(file))


def _documents(turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A document for each turn of the user that has an intent."""
    for number, turn in enumerate(turns):
        if turn["speaker"] != "USER" or len(turn["frames"]) != 1:
            continue
        frame = turn["frames"][0]
        intent = frame["state"]["active_intent"]
        if intent == "NONE":
            continue
        informed = [a for a in frame["actions"] if a["act"] == "INFORM" and a["values"]]
        details = sorted({f"{action['slot']}={action['values'][0]}" for action in informed})
        said = [f"{t['speaker'].capitalize()}: {t['utterance']}" for t in turns[max(0, number - 2) : number + 1]]
        question, answer = "\n".join([*said, QUESTION]), "; ".join([intent, *details])
        yield {"question": question, "answer": answer, "language": "en", "source": "sgd"}


def _run(arguments: Sequence[str]) -> dict[str, float]:
    """A command of ``alhena`` in a process of its own: its seconds and its peak memory."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "alhena.cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"alhena {' '.join(arguments)} failed (its error is above)")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(usage.ru_maxrss / 1024)}


def _tuned(base: Path, work: Path, flags: Sequence[str]) -> dict[str, Any]:
    """A tuning: seconds, memory, tokens/s and losses of its log."""
    found: dict[str, Any] = _run(["tune", str(base), "--data", str(work / "curated" / "train"), *flags])
    log = base.parent.parent / "tuned" / flags[-1] / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # The first line counts the compilation too.
    rates = [line["tokens_per_second"] for line in lines[1:] if "tokens_per_second" in line]
    losses = [line["loss"] for line in lines if isinstance(line.get("loss"), float)]
    return {**found, "tokens_per_second": float(np.median(rates)), "first_loss": losses[0], "last_loss": losses[-1]}


def _scores(results: Path, answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Exact match of the complete answers and of the intents alone, in percent."""
    report = json.loads((results / "results.json").read_text())
    intents = [
        a["reference"].split(";")[0].strip() == next(iter(a["answers"].values())).split(";")[0].strip() for a in answers
    ]
    keys = ("questions", "exact_match", "exact_match_interval", "exact_match_chance")
    return {**{key: report[key] for key in keys}, "intent_match": round(100 * float(np.mean(intents)), 1)}


def _add(found: dict[str, Any]) -> None:
    """Adds results to the file."""
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    results |= {"cores": os.cpu_count(), "machine": platform.machine()}
    for name, value in found.items():
        results[name] = {**results.get(name, {}), **value}
    OUT.write_text(json.dumps(results, indent=1) + "\n")


Command = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Steps, tyro.conf.subcommand("steps")]
    | Annotated[Loss, tyro.conf.subcommand("loss")]
)

if __name__ == "__main__":
    tyro.cli(Command, description=__doc__)()
