"""A few hundred damaged media files: each decodes or is refused in a sentence (the script tries any number)."""

from __future__ import annotations

import pytest

from tests.media import fuzz_media


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_damaged_media_decode_or_are_refused_in_a_sentence(first: int) -> None:
    faults = [found for found in fuzz_media.run(first, 300, 7) if found[2] not in ("decoded", "refused")]
    assert not faults


def test_an_item_is_the_same_every_time_and_differs_from_its_seed() -> None:
    items = [fuzz_media.item(number, 3) for number in range(60)]
    assert items == [fuzz_media.item(number, 3) for number in range(60)]
    assert sum(data not in fuzz_media.seeds().values() for _, data in items) > 50


def test_a_decoder_that_fails_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(data: bytes) -> None:
        raise {b"a": KeyError("x"), b"b": ValueError("the image <object at 0x1234>")}[data]

    monkeypatch.setattr("alhena.media.decode_image", failing)
    assert fuzz_media.outcome("image", b"a").startswith("traceback: KeyError")
    assert fuzz_media.outcome("image", b"b").startswith("message: ValueError")
