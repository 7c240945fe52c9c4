"""API keys: where requests carry them, and what a request without a valid one is told."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import parse_qs

from alhena.serve.gemini.wire.fields import WireError

# Paths that show nothing of the model or of its users: the page that asks for the key, and the state of the server.
OPEN_PATHS = ("/", "/favicon.ico", "/healthz")
OPEN_PREFIX = "/page/"
MAX_QUERY_FIELDS = 64


def _sent_keys(headers: Mapping[bytes, str], query: str) -> list[tuple[str, str]]:
    """Keys of a request with where they stand: x-goog-api-key, Authorization: Bearer, ?key=."""
    found = [("key", headers[b"x-goog-api-key"])] if b"x-goog-api-key" in headers else []
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        found.append(("token", token.strip()))
    try:
        found += [("key", key) for key in parse_qs(query, max_num_fields=MAX_QUERY_FIELDS).get("key", [])]
    except ValueError:
        raise WireError(400, f"the URL has more than {MAX_QUERY_FIELDS} parameters") from None
    return found


def _is_valid(sent: str, keys: tuple[str, ...]) -> bool:
    """Compares with every key, in a time that does not depend on where they differ."""
    data = sent.encode("utf-8", "surrogateescape")
    return sum(hmac.compare_digest(data, key.encode()) for key in keys) > 0


def check_key(path: str, query: str, headers: Mapping[bytes, str], keys: tuple[str, ...]) -> None:
    """Raises WireError, with Google's codes, when the server has keys and the request carries none of them."""
    if not keys or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return
    sent = _sent_keys(headers, query)
    if not sent:
        message = "this server demands an API key: send it as x-goog-api-key, ?key= or Authorization: Bearer"
        raise WireError(403, message, "PERMISSION_DENIED")
    # Google's clients send a key of their environment besides the one they are given, so one valid key is enough.
    if any(_is_valid(key, keys) for _, key in sent):
        return
    if all(place == "token" for place, _ in sent):
        raise WireError(401, "the token of the Authorization header is not valid", "UNAUTHENTICATED")
    raise WireError(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")
