"""Damaged model folders give a model or a one-line error. All damages: ``python -m tests.robustness.damaged_models``."""

from tests.robustness import damaged_models


def test_some_damaged_folders_are_opened_or_refused_in_one_line() -> None:
    assert damaged_models.main(few=60) == {}
