"""How well embeddings retrieve: recall@1 of sentences by their translations, answers by questions, abstracts by titles.

    python benchmarks/retrieval.py MODEL_FOLDER DATA_FOLDER [--number 100]

DATA_FOLDER holds text/tatoeba_112langs.tar.xz, text/peps.tar.xz and eval/gsm8k/test.jsonl. Each row compares three vectors of the same
texts: the mean of the last hidden states as they are; the same, standardized; and what the server returns (alhena/serve/embeddings.py).
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from pathlib import Path

import numpy as np

from alhena.content import Content, Text
from alhena.serve.embeddings import Embedder, unit
from alhena.serve.engine import Engine
from alhena.shapes import Float

MAX_CHARACTERS, MIN_CHARACTERS = 400, 25
Pairs = list[tuple[str, str]]


def translations(archive: Path, language: str) -> Pairs:
    """Sentences of a language and their English translations, none of them twice."""
    name = f"tatoeba.{language}-eng"
    with tarfile.open(archive) as tar:
        sides = [_read(tar, f"{name}.{side}").splitlines() for side in (language, "eng")]
    pairs: Pairs = []
    seen: set[str] = set()
    for foreign, english in zip(*sides, strict=True):
        if not seen & {foreign, english} and len(english) > MIN_CHARACTERS:
            pairs.append((foreign, english))
        seen |= {foreign, english}
    return pairs


def _read(tar: tarfile.TarFile, ending: str) -> str:
    member = next(m for m in tar.getmembers() if m.name.endswith(ending))
    file = tar.extractfile(member)
    assert file is not None
    return file.read().decode(errors="replace")


def abstracts(archive: Path) -> Pairs:
    """Titles of Python enhancement proposals and their abstracts."""
    pairs = []
    with tarfile.open(archive) as tar:
        for member in sorted((m for m in tar.getmembers() if m.name.endswith(".rst")), key=lambda m: m.name):
            text = _read(tar, member.name)
            title = re.search(r"^Title: (.+)$", text, re.MULTILINE)
            abstract = re.search(r"^Abstract\n=+\n+(.+?)(?=\n\n\n|\n[A-Z][^\n]*\n===)", text, re.MULTILINE | re.DOTALL)
            if title and abstract and len(abstract[1]) > 4 * MIN_CHARACTERS:
                pairs.append((title[1].strip(), " ".join(abstract[1].split())[:MAX_CHARACTERS]))
    return pairs


def answers(file: Path) -> Pairs:
    """Word problems and their solutions."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    solution = lambda text: re.sub(r"<<.*?>>", "", text).split("####")[0]  # noqa: E731
    return [(row["question"][:MAX_CHARACTERS], solution(row["answer"])[:MAX_CHARACTERS]) for row in rows]


def recall(queries: Float[np.ndarray, "n D"], documents: Float[np.ndarray, "n D"]) -> float:
    """The share of queries whose nearest document is their own."""
    return float((np.argmax(unit(queries) @ unit(documents).T, 1) == np.arange(len(queries))).mean())


def vectors(embedder: Embedder, texts: list[str]) -> dict[str, Float[np.ndarray, "n D"]]:
    """Vectors of texts by the way they are made."""
    examples = [embedder.encode(Content("document", (Text(text),))) for text in texts]
    order = np.argsort([len(example.tokens) for example in examples])
    pooled = np.zeros((len(embedder.depths), len(texts), embedder.dimension), np.float32)
    for start in range(0, len(order), 8):
        group = order[start : start + 8]
        pooled[:, group] = embedder.pool([examples[i] for i in group])
    mean, spread = embedder.statistics
    standardized = unit((pooled - mean) / spread)
    return {"last, plain": pooled[-1], "last, standardized": standardized[-1], "three depths": standardized.sum(0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--number", type=int, default=100, help="documents of each set")
    parser.add_argument("--languages", nargs="*", default=["rus", "ell", "tur"])
    options = parser.parse_args()
    embedder = Embedder(Engine.load(options.model))
    sets = {
        language: translations(options.data / "text/tatoeba_112langs.tar.xz", language)
        for language in options.languages
    }
    sets["titles to abstracts"] = abstracts(options.data / "text/peps.tar.xz")
    sets["problems to solutions"] = answers(options.data / "eval/gsm8k/test.jsonl")
    for name, pairs in sets.items():
        chosen = [pairs[i] for i in np.random.default_rng(1).permutation(len(pairs))[: options.number]]
        queries, documents = (vectors(embedder, [pair[side] for pair in chosen]) for side in (0, 1))
        results = ", ".join(f"{how} {recall(queries[how], documents[how]):.2f}" for how in queries)
        print(f"{name} ({len(chosen)} documents, chance {1 / len(chosen):.2f}): {results}", flush=True)


if __name__ == "__main__":
    main()
