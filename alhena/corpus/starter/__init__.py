"""The starter corpus: built offline on the user's machine, deterministic by seed, every item with its ground truth.

    seed ─► scenes digits ocr charts speech video spoken drawing retrieval translation names text code pages
         ─► train.parquet, validation.parquet, test.parquet, samples.png

What the test split holds, and why it was never seen, is told in :mod:`alhena.corpus.starter.splits`.
"""

from alhena.corpus.starter.build import SOURCES, Starter, build

__all__ = ["SOURCES", "Starter", "build"]
