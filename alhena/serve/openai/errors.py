"""Errors in OpenAI's format: {"error": {"message": "…", "type": "invalid_request_error", "param": "messages[0]", "code": null}}"""

from __future__ import annotations

import re
from typing import Any

from alhena.serve.gemini.wire.translation import error_route

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
# A message that begins with the path of a field.
PARAM = re.compile(r"([a-z]\w*(?:\[\d+\])*(?:\.\w+(?:\[\d+\])*)*)(?: (?:is|must|needs|goes|has an unknown)\b|:)")


def error_body(code: int, message: str) -> dict[str, Any]:
    """An error's body.

    >>> error_body(400, "messages[0].role is 'x'; there are system, user")["error"]["param"]
    'messages[0].role'
    """
    kind = TYPES.get(code, "invalid_request_error" if code < 500 else "server_error")
    named = PARAM.match(message) if code == 400 else None
    error = {"message": message, "type": kind, "param": named[1] if named else None, "code": CODES.get(code)}
    return {"error": error}


Route = error_route(lambda error: error_body(error.code, error.message))
