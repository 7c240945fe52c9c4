"""Small tokenizers with the control tokens of each prompt format, and their settings."""

from __future__ import annotations

from functools import lru_cache

from alhena.tokens.formats.prompts import CONTROLS, PromptSettings, Variants
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from tests.tokens.small_hf_tokenizer import CONTROLS as BASE
from tests.tokens.small_hf_tokenizer import small_tokenizer


@lru_cache
def tokenizer_of(format: str) -> HfTokenizer:
    names = CONTROLS[format].values()
    data = small_tokenizer(more=tuple(name for name in names if name not in BASE))
    ids = [HfTokenizer.from_bytes(data).id(name) for name in names]
    return HfTokenizer.from_bytes(data, ids)


def settings_of(format: str, **variants: object) -> PromptSettings:
    settings = PromptSettings.from_tokenizer(format, tokenizer_of(format))
    return PromptSettings(**(vars(settings) | {"variants": Variants(**variants)}))
