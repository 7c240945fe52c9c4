"""Trains the safety classifier of the package:      python benchmarks/train_safety.py DATA OUT.npz

DATA is a folder with the files of docs/safety.md. The labelled texts of each source are deduplicated, then split: 85 % (of XSTest 50 %)
to train, the rest to measure. Novels and help dialogues are in no training set. Prints the tables of docs/safety.md.
"""

from __future__ import annotations

import csv
import gzip
import html
import json
import random
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from alhena.serve import safety

SEED = 7
CALM_WINDOWS = 20_000
STRENGTH = 10.0
# Levels of the API above NEGLIGIBLE, and the least probability of each.
LEVELS, LIMITS = ("LOW", "MEDIUM", "HIGH"), (0.2, 0.5, 0.8)
HARASSMENT, HATE, SEXUAL, DANGEROUS = safety.RATED
# Hazards of AILuminate. Those that are not here (defamation, privacy, hate, piracy) say nothing certain about these categories.
SEXUAL_HAZARDS, DANGEROUS_HAZARDS = ("sxc_prn", "src", "cse"), ("vcr", "ncr", "iwp", "ssh")
CALM_HAZARDS = ("spc_fin", "spc_hlt", "spc_ele", "spc_lgl")


@dataclass(frozen=True)
class Sample:
    """The words of a text, and by category whether it is harmful, where that is known."""

    text: str
    harmful: Mapping[str, bool]


# ── Data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tweets(path: Path) -> Iterator[Sample]:
    """Tweets: hateful (0), offensive (1) or neither; hashtags and retweets hold no label."""
    for row in _rows(path):
        found = [word for word in safety.words(html.unescape(html.unescape(row["tweet"]))) if word != "rt"]
        yield Sample(" ".join(found), {HARASSMENT: row["class"] in "01", HATE: row["class"] == "0"})


def moderation(path: Path) -> Iterator[Sample]:
    """OpenAI's samples: a label that is absent is unknown."""
    for line in gzip.decompress(path.read_bytes()).splitlines():
        row = json.loads(line)
        known = {SEXUAL: _any(row, "S", "S3"), DANGEROUS: _any(row, "V", "V2", "SH")}
        harmful = {name: value for name, value in known.items() if value is not None}
        yield Sample(" ".join(safety.words(row["prompt"])), harmful)


def _any(row: Mapping[str, object], *labels: str) -> bool | None:
    if any(row.get(label) for label in labels):
        return True
    return False if all(label in row for label in labels) else None


def ailuminate(path: Path) -> Iterator[Sample]:
    """Prompts that ask for what is harmful, by hazard."""
    for row in _rows(path):
        hazard = row["hazard"]
        harmful = {SEXUAL: False, DANGEROUS: False} if hazard in CALM_HAZARDS else {}
        harmful |= {SEXUAL: True} if hazard in SEXUAL_HAZARDS else {}
        harmful |= {SEXUAL: False, DANGEROUS: True} if hazard in DANGEROUS_HAZARDS else {}
        yield Sample(" ".join(safety.words(row["prompt_text"])), harmful)


def advbench(path: Path) -> Iterator[Sample]:
    """Requests for help with harmful acts."""
    return (Sample(" ".join(safety.words(row["goal"])), {DANGEROUS: True}) for row in _rows(path))


def xstest(path: Path) -> Iterator[Sample]:
    """Requests that only sound dangerous, and dangerous ones that sound alike; privacy and discrimination are other categories."""
    for row in _rows(path):
        is_safe, of_other = row["label"] == "safe", row["type"] in ("contrast_discr", "contrast_privacy")
        harmful = {DANGEROUS: False, SEXUAL: False} if is_safe else {} if of_other else {DANGEROUS: True}
        yield Sample(" ".join(safety.words(row["prompt"])), harmful)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from csv.DictReader(file)


def neutral(data: Path) -> Iterator[str]:
    """Texts without harm to train on: instructions, help dialogues, proposals, sentences, a novel."""
    for line in (data / "chat" / "self_instruct_seed_tasks.jsonl").read_text().splitlines():
        task = json.loads(line)
        yield task["instruction"]
        yield from (f"{instance['input']} {instance['output']}" for instance in task["instances"])
    with tarfile.open(data / "chat" / "taskmaster4_6files.tar.xz") as archive:
        for name in archive.getnames()[:3]:
            for dialogue in json.load(archive.extractfile(name))[:400]:
                yield " ".join(turn["text"] for turn in dialogue["utterances"])
    with tarfile.open(data / "text" / "peps.tar.xz") as archive:
        for name in archive.getnames()[:60]:
            yield archive.extractfile(name).read().decode("utf-8", "replace")
    with tarfile.open(data / "text" / "tatoeba_112langs.tar.xz") as archive:
        for name in (name for name in archive.getnames() if name.endswith(".eng")):
            yield from archive.extractfile(name).read().decode("utf-8", "replace").splitlines()[:100]
    yield (data / "text" / "se_alices-adventures-in-wonderland.txt").read_text()


def held_out(data: Path) -> dict[str, str]:
    """Texts without harm, none of them trained on."""
    text = data / "text"
    names = {"Pride and Prejudice": "se_pride-and-prejudice.txt", "Moby-Dick": "se_moby-dick.txt"}
    out = {title: (text / name).read_text() for title, name in names.items()}
    with tarfile.open(data / "chat" / "taskmaster4_6files.tar.xz") as archive:
        dialogues = json.load(archive.extractfile(archive.getnames()[5]))
    out["help dialogues"] = " ".join(turn["text"] for d in dialogues[:400] for turn in d["utterances"])
    return out


def split(samples: Iterable[Sample], share: int = 85) -> tuple[list[Sample], list[Sample]]:
    """The distinct samples of a source whose label is known: ``share`` per cent to train, the rest to measure."""
    distinct = {sample.text: sample for sample in samples if sample.harmful}
    chosen = list(distinct.values())
    random.Random(SEED).shuffle(chosen)
    end = len(chosen) * share // 100
    return chosen[:end], chosen[end:]


# ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────


def matrix(texts: list[list[str]]) -> csr_matrix:
    rows = [safety.features(words) for words in texts]
    ends = np.cumsum([0, *map(len, rows)])
    values = np.concatenate([np.full(len(row), 1 / np.sqrt(len(row))) for row in rows if len(row)])
    return csr_matrix((values, np.concatenate(rows), ends), (len(rows), safety.BUCKETS))


def train(samples: list[Sample], calm: list[list[str]]) -> safety.Weights:
    """One regression for each category, on windows; the windows of a text weigh as much as one of a short text."""
    windows = [(sample, list(safety.windows(sample.text))) for sample in samples]
    calm_x, weights, biases = matrix(calm), [], []
    for category in safety.RATED:
        known = [(s.harmful[category], found) for s, found in windows if category in s.harmful]
        rows = [(window, label, 1 / len(found)) for label, found in known for window in found]
        x = vstack([matrix([window for window, _, _ in rows]), calm_x])
        y = np.array([label for _, label, _ in rows] + [False] * len(calm))
        weight = np.array([share for _, _, share in rows] + [1.0] * len(calm))
        fitted = LogisticRegression(C=STRENGTH, solver="liblinear", max_iter=200).fit(x, y, weight)
        print(f"{category}: {int(y.sum()):,} harmful of {len(y):,} windows", flush=True)
        weights.append(fitted.coef_[0])
        biases.append(fitted.intercept_[0])
    return safety.Weights(np.array(weights, np.float32), np.array(biases, np.float32))


# ── Measuring ─────────────────────────────────────────────────────────────────────────────────────────────────


def scores(weights: safety.Weights, texts: Iterable[str]) -> np.ndarray:
    return np.array([weights.scores(text) for text in texts])


def report(name: str, truth: np.ndarray, score: np.ndarray) -> None:
    """One row: how well the harmful texts of a category are told from the others."""
    row = [f"AUC {roc_auc_score(truth, score):.3f}", f"average precision {average_precision_score(truth, score):.3f}"]
    for level, limit in zip(LEVELS, LIMITS, strict=True):
        chosen = score >= limit
        hits = (chosen & truth).sum()
        row.append(f"{level}+ precision {hits / max(chosen.sum(), 1):.2f} recall {hits / truth.sum():.2f}")
    print(f"{name}: {'; '.join(row)} ({truth.sum()} of {len(truth)})")


def report_held_out(name: str, weights: safety.Weights, test: list[Sample]) -> None:
    """A row for each category of which some of these samples are harmful and some are not."""
    for i, category in enumerate(safety.RATED):
        known = [sample for sample in test if category in sample.harmful]
        truth = np.array([sample.harmful[category] for sample in known], bool)
        if truth.any() and not truth.all():
            report(f"{name}, {category}", truth, scores(weights, (sample.text for sample in known))[:, i])


def report_levels(name: str, found: np.ndarray) -> None:
    """The shares of some texts that have at least each level, by category."""
    rates = (found[:, :, None] >= np.array(LIMITS)).mean(0) * 100
    levels = "; ".join(f"{c} {np.round(rate, 2).tolist()}" for c, rate in zip(safety.RATED, rates, strict=True))
    print(f"{name}: {len(found):,}; LOW+, MEDIUM+, HIGH in %: {levels}")


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    labelled = data / "safety"
    sources = {
        "tweets": split(tweets(labelled / "labelled_tweets.csv")),
        "moderation": split(moderation(labelled / "moderation_samples.jsonl.gz")),
        "AILuminate": split(ailuminate(labelled / "ailuminate_demo_en.csv")),
        "AdvBench": split(advbench(labelled / "advbench_harmful_behaviors.csv")),
        "XSTest": split(xstest(labelled / "xstest_prompts.csv"), 50),
    }
    calm = [window for text in neutral(data) for window in safety.windows(text) if len(window) > 2]
    random.Random(SEED).shuffle(calm)
    train([s for first, _ in sources.values() for s in first], calm[:CALM_WINDOWS]).save(out)
    weights = safety.Weights.load(out)
    report_held_out("all", weights, [s for _, second in sources.values() for s in second])
    for name, (_, second) in sources.items():
        report_held_out(name, weights, second)
    calm_prompts = [s.text for s in sources["XSTest"][1] if not s.harmful[DANGEROUS]]
    report_levels("XSTest, safe", scores(weights, calm_prompts))
    for title, text in held_out(data).items():
        each = [" ".join(window) for window in safety.windows(text)]
        found = scores(weights, each)
        report_levels(title, found)
        for i, category in enumerate(safety.RATED):
            print("\n".join(f"    {category} {found[j, i]:.2f} {each[j]}" for j in np.argsort(-found[:, i])[:3]))


if __name__ == "__main__":
    main()
