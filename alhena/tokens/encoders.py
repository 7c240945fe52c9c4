"""The encoder of a folder: ours, or that of an imported model."""

from __future__ import annotations

from pathlib import Path

from alhena.tokens.encode import Encoder, ImageCodeEncoder
from alhena.tokens.gemma_encoder import PROMPT, GemmaEncoder
from alhena.tokens.text.hf_tokenizer import TOKENIZER
from alhena.tokens.text.text_file import stored_tokenizer

VOCABULARY = "vocabulary.json"
# The files of the image tokenizer.
IMAGE_FILES = ("image_tokenizer.json", "image_tokenizer.safetensors")
# Files of an imported model beside its weights and its configuration.
IMPORTED_FILES = (PROMPT, TOKENIZER)


def is_own(folder: Path) -> bool:
    """Whether a folder's encoder has our own format; the text tokenizer may be that of an imported model."""
    return not (folder / PROMPT).exists()


def encoder_files(folder: Path) -> tuple[str, ...]:
    """The files from which the encoder of a model folder, and its image tokenizer, are loaded."""
    return (stored_tokenizer(folder), VOCABULARY, *IMAGE_FILES) if is_own(folder) else IMPORTED_FILES


AnyEncoder = Encoder | GemmaEncoder


def load_encoder(folder: Path, encode_image_codes: ImageCodeEncoder | None = None) -> AnyEncoder:
    """An ``Encoder``, or where the folder has a ``prompt.json`` a ``GemmaEncoder``; ``encode_image_codes`` is for the former.

    Raises ValueError that names the file when one is missing or does not fit.
    """
    if is_own(folder):
        return Encoder.load(folder, encode_image_codes)
    if (folder / VOCABULARY).exists():
        raise ValueError(f"{folder}: {PROMPT} and {VOCABULARY} are files of two models")
    return GemmaEncoder.load(folder)
