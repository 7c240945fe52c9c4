"""Trains the safety classifier of the package:      python benchmarks/train_safety.py DATA OUT.npz

DATA is a folder with the files of docs/safety.md. Texts are deduplicated, then split: 70 % to train, 15 % to choose the regularization,
15 % to measure, and novels and help dialogues that are in no training set. Prints the table of docs/safety.md.
"""

from __future__ import annotations

import csv
import html
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from alhena.serve import safety

SEED = 7
# Levels of the API above NEGLIGIBLE, and the least probability of each.
LEVELS, LIMITS = ("LOW", "MEDIUM", "HIGH"), (0.2, 0.5, 0.8)
STRENGTHS = (10.0,)
# Labels of the tweets.
HATE, OFFENSIVE = "0", "1"
Labelled = tuple[str, bool, bool]


def tweets(path: Path) -> list[Labelled]:
    """Distinct tweets, whether each is abusive, and whether it is hate speech; hashtags and retweets hold no label."""
    out: dict[str, Labelled] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = [word for word in safety.words(html.unescape(html.unescape(row["tweet"]))) if word != "rt"]
            text = " ".join(found)
            out.setdefault(text, (text, row["class"] in (HATE, OFFENSIVE), row["class"] == HATE))
    return list(out.values())


def neutral(data: Path) -> Iterator[str]:
    """Texts without abuse to train on: instructions, help dialogues, proposals, sentences, a novel."""
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
    """Texts without abuse, none of them trained on."""
    text = data / "text"
    names = {"Pride and Prejudice": "se_pride-and-prejudice.txt", "Moby-Dick": "se_moby-dick.txt"}
    out = {title: (text / name).read_text() for title, name in names.items()}
    with tarfile.open(data / "chat" / "taskmaster4_6files.tar.xz") as archive:
        dialogues = json.load(archive.extractfile(archive.getnames()[5]))
    out["help dialogues"] = " ".join(turn["text"] for d in dialogues[:400] for turn in d["utterances"])
    return out


def matrix(texts: list[list[str]]) -> csr_matrix:
    rows = [safety.features(words) for words in texts]
    ends = np.cumsum([0, *map(len, rows)])
    values = np.concatenate([np.full(len(row), 1 / np.sqrt(len(row))) for row in rows if len(row)])
    return csr_matrix((values, np.concatenate(rows), ends), (len(rows), safety.BUCKETS))


def scores(weights: safety.Weights, texts: list[str]) -> np.ndarray:
    return np.array([weights.scores(text) for text in texts])


def report(name: str, truth: np.ndarray, score: np.ndarray) -> None:
    row = [f"AUC {roc_auc_score(truth, score):.3f}", f"average precision {average_precision_score(truth, score):.3f}"]
    for level, limit in zip(LEVELS, LIMITS, strict=True):
        chosen = score >= limit
        hits = (chosen & truth).sum()
        row.append(f"{level}+ precision {hits / max(chosen.sum(), 1):.2f} recall {hits / truth.sum():.2f}")
    print(f"{name}: {'; '.join(row)} ({truth.sum()} of {len(truth)})")


def train(rows: list[Labelled], calm: list[list[str]], check: list[Labelled]) -> safety.Weights:
    """One regression for each category, its strength chosen by the AUC on ``check``."""
    x = matrix([text.split()[: safety.WINDOW] for text, _, _ in rows] + calm)
    chosen, biases = [], []
    for i in range(2):
        y = np.array([row[1 + i] for row in rows] + [False] * len(calm))
        truth, best = np.array([row[1 + i] for row in check]), (0.0, None)
        held = matrix([text.split()[: safety.WINDOW] for text, _, _ in check])
        for strength in STRENGTHS:
            fitted = LogisticRegression(C=strength, solver="liblinear", max_iter=200).fit(x, y)
            area = roc_auc_score(truth, fitted.decision_function(held))
            print(f"{safety.RATED[i]}: C {strength:g}, AUC {area:.4f}", flush=True)
            best = max(best, (area, fitted), key=lambda pair: pair[0])
        chosen.append(best[1].coef_[0])
        biases.append(best[1].intercept_[0])
    return safety.Weights(np.array(chosen, np.float32), np.array(biases, np.float32))


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = tweets(data / "safety" / "labelled_tweets.csv")
    random.Random(SEED).shuffle(rows)
    first, second = len(rows) * 70 // 100, len(rows) * 85 // 100
    calm = [window for text in neutral(data) for window in safety.windows(text) if len(window) > 2]
    random.Random(SEED).shuffle(calm)
    print(f"{len(rows):,} distinct tweets; {len(calm[:20_000]):,} of {len(calm):,} calm windows", flush=True)
    train(rows[:first], calm[:20_000], rows[first:second]).save(out)
    weights = safety.Weights.load(out)
    test = rows[second:]
    found = scores(weights, [text for text, _, _ in test])
    for i, category in enumerate(safety.RATED):
        report(category, np.array([row[1 + i] for row in test]), found[:, i])
    for title, text in held_out(data).items():
        each = [" ".join(window) for window in safety.windows(text)]
        found = scores(weights, each)
        rates = (found[:, :, None] >= np.array(LIMITS)).mean(0)
        print(f"{title}: {len(each):,} windows, LOW+, MEDIUM+, HIGH: {np.round(rates * 100, 2).tolist()} %")
        worst = np.argsort(-found[:, 0])[:4]
        print("\n".join(f"    {found[i, 0]:.2f} {each[i]}" for i in worst))


if __name__ == "__main__":
    main()
