"""A sample of the damaged corpora, in this process. All of them: ``python -m tests.robustness.damaged_corpora``."""

from __future__ import annotations

import pytest

from tests.robustness.damaged_corpora import Case, cases, trial

SLOW = ("bomb", "long", "many", "large", "deep", "twice", "no lines")
FAST = [case for case in cases() if not any(word in case.name for word in SLOW)]


@pytest.mark.parametrize("case", FAST[::6], ids=lambda case: case.name)
def test_a_damaged_corpus_is_curated_or_refused(case: Case, tmp_path) -> None:
    trial(case, tmp_path)


def test_cases_have_unique_names() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) > 300
