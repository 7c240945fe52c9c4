"""Which items of a benchmark a training corpus holds: the rules of decontamination (alhena/corpus/filters.py), item by item.

items ── n-grams, questions with answers ──► index ◄── documents of the corpus, streamed ──► ids of the items found
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alhena.content import Content, Document, Text, written
from alhena.corpus.curate import Curate
from alhena.corpus.filters import MAX_ITEMS_OF_NGRAM, Inspected, ngrams, questions
from alhena.documents import read_documents
from alhena.evaluate.tasks.items import Item
from alhena.files import read_json
from alhena.progress import progress_bar

# The reasons of alhena/corpus/filters.Decontaminator, as report.json of a curated corpus counts them.
REMOVED = ("in an evaluation set", "overlaps an evaluation set")


def as_document(item: Item) -> Document:
    """An item as a conversation: what a corpus that holds it would have."""
    passage = str(item.facts.get("passage", ""))
    question = f"{passage}\n{item.question}" if passage else item.question
    answer = item.solution or item.reference
    return Document((Content("user", (Text(question),)), Content("model", (Text(answer),))), item.id, "benchmark")


@dataclass(frozen=True)
class Contamination:
    """Ids of the items that the corpus holds, and the number of documents that curating it removed because of evaluation sets."""

    held: frozenset[str]
    documents: int
    removed: int

    def facts(self, scores: dict[str, float]) -> dict[str, Any]:
        """What the result of a task says of it: mean scores of all items, and of those that the corpus does not hold, in percent."""
        unseen = [score for id, score in scores.items() if id not in self.held]
        return {
            "corpus_documents": self.documents,
            "removed_from_corpus": self.removed,
            "items_held": sum(id in self.held for id in scores),
            "score_with": round(100 * sum(scores.values()) / max(1, len(scores)), 2),
            "score_without": round(100 * sum(unseen) / len(unseen), 2) if unseen else None,
        }


def held_items(items: Sequence[Item], documents: Iterable[Document], n: int = Curate().ngram_size) -> frozenset[str]:
    """Ids of the items of which a document has ``n`` words in a row, or the same question with the same answer.

    N-grams of more than MAX_ITEMS_OF_NGRAM items belong to a template.
    """
    owners, asked = defaultdict[int, set[str]](set), defaultdict[tuple[bytes, ...], set[str]](set)
    for item in items:
        document = as_document(item)
        for ngram in ngrams(document, n):
            owners[ngram].add(item.id)
        for question in questions(Inspected(document, (), None)):
            asked[question].add(item.id)
    owners = defaultdict(set, {ngram: ids for ngram, ids in owners.items() if len(ids) <= MAX_ITEMS_OF_NGRAM})
    found = set[str]()
    for document in documents:
        for ngram in ngrams(document, n):
            found |= owners.get(ngram, set())
        if all(written(part) is not None for part in document.parts):
            for question in questions(Inspected(document, (), None)):
                found |= asked.get(question, set())
    return frozenset(found)


def contamination(items: Sequence[Item], corpus: Path) -> Contamination:
    """What the curated corpus in a folder, the output of ``alhena curate``, holds of these items."""
    report = read_json(corpus / "report.json", dropped=dict) if (corpus / "report.json").exists() else {"dropped": {}}
    removed = sum(Counter(report["dropped"].get(reason, {})).total() for reason in REMOVED)
    count = 0

    def counted() -> Iterable[Document]:
        nonlocal count
        with progress_bar() as progress:
            bar = progress.add_task("search corpus", total=None)
            for document in read_documents(corpus):
                count += 1
                progress.update(bar, advance=1)
                yield document

    held = held_items(items, counted())
    return Contamination(held, count, removed)
