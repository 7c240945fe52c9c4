"""thoughtSignature: opaque bytes that a client returns with a function call, and that restore the thought before it.

A client that does not ask for thoughts still returns them so, and the model continues from its thought after the function's result.
Signatures of other servers are accepted and mean nothing here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from alhena.content import Thought
from alhena.serve.gemini.wire.blobs import MAX_TEXT
from alhena.serve.gemini.wire.fields import read_string

MARK, CHECK_BYTES = b"alhena-thought-1:", 8
MAX_SIGNATURE = 2 * MAX_TEXT


def _check(text: bytes) -> bytes:
    return hashlib.sha256(MARK + text).digest()[:CHECK_BYTES]


def write_signature(thought: str) -> str:
    """The signature of a thought.

    >>> read_signature(write_signature("hm"), "part")
    Thought(text='hm')
    """
    text = thought.encode()
    return base64.b64encode(MARK + _check(text) + text).decode()


def read_signature(value: Any, where: str) -> Thought | None:
    """The thought of a signature of this server; None for any other. Raises WireError unless it is a string."""
    signature = read_string(value, where, MAX_SIGNATURE).replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(signature + "=" * (-len(signature) % 4), validate=True)
        check, text = data[len(MARK) :][:CHECK_BYTES], data[len(MARK) + CHECK_BYTES :]
        return Thought(text.decode()) if data.startswith(MARK) and check == _check(text) else None
    except (binascii.Error, ValueError):
        return None
