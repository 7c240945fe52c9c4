"""The prompt side of an import: tokenizer and prompt format of open weights, for a model folder."""

from __future__ import annotations

from pathlib import Path

from alhena.model import config
from alhena.model.families.gguf.file import open_gguf
from alhena.model.families.gguf.tokenizer import has_tokenizer, tokenizer_json
from alhena.tokens.formats.prompts import Facts, PromptSettings
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer


def prompt_format(model_type: str) -> str:
    """The prompt format of a ``model_type`` of ``config.json``. Gemma 1 and 2 have that of Gemma 3, without media."""
    return next((name for name in ("gemma3n", "gemma4") if model_type.startswith(name)), "gemma3")


def import_prompts(source: Path, out: Path, model_type: str, c: config.Model) -> bool:
    """Writes ``tokenizer.json`` and ``prompt.json``; False where there is no tokenizer of an open model.

    That is a folder in Hugging Face's layout without ``tokenizer.json``, or a GGUF file without a tokenizer, or with one of ours.

    ``source`` is that folder or a GGUF file. Raises ValueError that names the file and what is wrong in it.
    """
    form, path = prompt_format(model_type), source / "tokenizer.json"
    if source.is_file() and not has_tokenizer(open_gguf(source)):
        return False
    if source.is_file():
        tokenizer, settings = _of_gguf(source, form)
    elif path.exists():
        tokenizer, settings = HfTokenizer.load(path), PromptSettings.from_folder(source, form)
    else:
        return False
    GemmaEncoder.create(tokenizer, settings, c).save(out)
    return True


def _of_gguf(path: Path, form: str) -> tuple[HfTokenizer, PromptSettings]:
    """Tokenizer and settings from the metadata of a GGUF file."""
    file = open_gguf(path)
    tokenizer = HfTokenizer.from_bytes(tokenizer_json(file))
    context = file.get(f"{file.architecture}.context_length", int)
    template = file.get("tokenizer.chat_template", str, "")
    return tokenizer, PromptSettings.from_tokenizer(form, tokenizer, template, Facts(context=context))
