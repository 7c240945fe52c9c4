"""computeTokens: the ids and the bytes of the tokens of texts."""

from __future__ import annotations

import base64
from typing import Any

from alhena.serve.gemini.wire.fields import WireError, parse_json, read_list, read_object, read_string
from alhena.tokens.text.tokenizer import Tokenizer

MAX_TEXT = 1 << 20
MAX_CONTENTS = 512


def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[int, bytes]]:
    """Ids and bytes of the tokens of a text; the bytes, joined, are the text."""
    ids = tokenizer.encode(text)
    data = [tokenizer.piece(token) for token in ids]
    if b"".join(data) == b" " + text.encode():
        # SentencePiece puts a space before the first word.
        data[0] = data[0][1:]
    return list(zip(ids, data, strict=True))


def compute_tokens(tokenizer: Tokenizer, body: bytearray) -> dict[str, Any]:
    """The response of computeTokens: of each content without the control tokens around it. Raises WireError."""
    fields = read_object(parse_json(body), "", ("contents", "model"))
    contents = read_list(fields.get("contents", []), "contents", MAX_CONTENTS)
    if not contents:
        raise WireError(400, "contents is missing: it must hold at least one turn with parts")
    out, characters = [], 0
    for i, content in enumerate(contents):
        role, text = _read(content, f"contents[{i}]")
        characters += len(text)
        if characters > MAX_TEXT:
            raise WireError(400, f"a request has at most {MAX_TEXT:,} characters of text")
        tokens = pieces(tokenizer, text)
        info = {"tokenIds": [str(token) for token, _ in tokens]}
        info["tokens"] = [base64.b64encode(data).decode() for _, data in tokens]
        out.append({"role": role, **info})
    return {"tokensInfo": out}


def _read(content: Any, where: str) -> tuple[str, str]:
    """Role and text of a turn."""
    fields = read_object(content, where, ("role", "parts"))
    texts = []
    for i, part in enumerate(read_list(fields.get("parts", []), f"{where}.parts", MAX_CONTENTS)):
        at = f"{where}.parts[{i}]"
        text = read_object(part, at, ("text",)) if isinstance(part, dict) and set(part) <= {"text"} else {}
        if "text" not in text:
            raise WireError(400, f"{at} is not text: only text has tokens of its own; countTokens counts media too")
        texts.append(read_string(text["text"], f"{at}.text", MAX_TEXT))
    return read_string(fields.get("role", "user"), f"{where}.role", 64), "".join(texts)
