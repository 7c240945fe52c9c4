"""The file of the text tokenizer in a folder: ours, or that of the imported model which a model of ours extends.

text.model        SentencePiece, trained on the corpus
tokenizer.json    the tokenizer of the imported model: its tokens keep their ids
"""

from __future__ import annotations

from pathlib import Path

from alhena.model.storage.tensors import regular
from alhena.tokens.text.hf_tokenizer import TOKENIZER, HfTokenizer
from alhena.tokens.text.tokenizer import TextTokenizer, Tokenizer

OWN_TOKENIZER = "text.model"


def tokenizer_file(tokenizer: Tokenizer) -> str:
    """Name of the file of a tokenizer."""
    return TOKENIZER if isinstance(tokenizer, HfTokenizer) else OWN_TOKENIZER


def stored_tokenizer(folder: Path) -> str:
    """Name of the file of a folder's tokenizer. Raises ValueError when there are two."""
    imported = (folder / TOKENIZER).exists()
    if imported and (folder / OWN_TOKENIZER).exists():
        raise ValueError(f"{folder}: {OWN_TOKENIZER} and {TOKENIZER} are files of two models")
    return TOKENIZER if imported else OWN_TOKENIZER


def load_tokenizer(folder: Path, num_text: int) -> Tokenizer:
    """The tokenizer of a folder, whose ids of text must be the first ``num_text``. Raises ValueError that names the file."""
    path = regular(folder / stored_tokenizer(folder))
    if path.name == TOKENIZER:
        tokenizer = HfTokenizer.load(path)
        check_ids(tokenizer, num_text, path)
        return tokenizer
    try:
        own = TextTokenizer.from_bytes(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if own.size != num_text:
        raise ValueError(f"{folder}: {path.name} has {own.size} tokens but vocabulary.json says {num_text}")
    return own


def check_ids(tokenizer: HfTokenizer, num_text: int, path: Path) -> None:
    """Raises ValueError when a text could be encoded with an id of ``num_text`` or more. There may be fewer tokens than ids."""
    beyond = set(range(num_text, tokenizer.size)) - tokenizer.controls
    if beyond:
        raise ValueError(f"{path}: the token {min(beyond)} is none of the {num_text} text ids of its model")
