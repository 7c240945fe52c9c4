"""Encoded examples to train on, in two sources."""

from __future__ import annotations

import pytest

from alhena.tokens.store import write_examples


@pytest.fixture(scope="session")
def data(encoder, documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    inner = {"patches": (192,), "frames": (128, 128)}
    for name, some in (("a", documents[:2]), ("b", documents[2:])):
        write_examples(folder / f"{name}.arrow", [e for d in some * 6 for e in encoder.encode(d, 256)], inner)
    return folder
