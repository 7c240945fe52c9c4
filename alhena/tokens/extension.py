"""What the tokens of an extended model take from the imported text model: its tokenizer, and the fingerprint of its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alhena.files import FILES, fingerprint, read_entries
from alhena.model.storage.weights import WEIGHTS
from alhena.tokens.encoders import load_encoder
from alhena.tokens.gemma_encoder import PROMPT, GemmaEncoder
from alhena.tokens.text.hf_tokenizer import TOKENIZER, HfTokenizer
from alhena.tokens.text.text_file import check_ids

# Files of an imported model on which its tokenizer, and on which all of it depends.
TEXT_FILES = (TOKENIZER, PROMPT)
MODEL_FILES = (*TEXT_FILES, "model.json", WEIGHTS)


def base_fingerprint(base: Path, names: Sequence[str]) -> str:
    """Fingerprint of the content of files of an imported model, as recorded when it was imported.

    Raises ValueError when the folder does not list one of them.
    """
    if not (base / FILES).exists():
        raise ValueError(f"{base}: it has no {FILES}: it is no imported model (docs/open-weights.md)")
    entries = read_entries(base / FILES)
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"{base / FILES}: it does not list {missing[0]}: import the model again, with its tokenizer")
    return fingerprint("base", {name: entries[name]["sha256"] for name in names})


def base_tokenizer(base: Path, num_text: int) -> HfTokenizer:
    """The tokenizer of an imported model of ``num_text`` ids. Raises ValueError when it has none, or text tokens beyond these."""
    encoder = load_encoder(base)
    if not isinstance(encoder, GemmaEncoder):
        raise ValueError(f"{base}: a model of our own format; only an imported one can be extended")
    check_ids(encoder.tokenizer, num_text, base / TOKENIZER)
    return encoder.tokenizer
