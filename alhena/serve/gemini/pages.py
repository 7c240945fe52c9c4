"""Pages of a list: pageSize and pageToken of a request, nextPageToken of its response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from alhena.serve.gemini.wire.fields import WireError
from alhena.serve.store import Record


@dataclass(frozen=True)
class Page:
    """At most ``size`` items, after the item of ``number`` where there is one."""

    size: int
    number: int | None

    def write(self, name: str, found: list[Record], write: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
        """The response with the first ``size`` of ``size + 1`` records."""
        more = len(found) > self.size
        shown = found[: self.size]
        return {
            **({name: [write(record) for record in shown]} if shown else {}),
            **({"nextPageToken": str(shown[-1].number)} if more else {}),
        }


def read_page(request: Request, default: int, maximum: int) -> Page:
    """The page that a request asks for; a larger one is clamped, as in Google's APIs. Raises WireError."""
    query = request.query_params
    size_text = query.get("pageSize", query.get("page_size", "0")) or "0"
    token = query.get("pageToken", query.get("page_token", ""))
    if not (size_text.isascii() and size_text.isdigit() and len(size_text) <= 9):
        raise WireError(400, f"pageSize is {size_text[:20]!r}; it must be a positive integer")
    if token and not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise WireError(400, f"pageToken is {token[:40]!r}; it must be the nextPageToken of a response")
    return Page(min(int(size_text) or default, maximum), int(token) if token else None)
