"""An offline Gemini API for an application's own tests: scripted answers, failures and slow streams behind the real HTTP server.

    with gemini_server() as server:
        server.reply("Bern", when="capital of Switzerland")
        server.fail(429)
        client = genai.Client(api_key="any", http_options={"base_url": server.url})

Under pytest the fixture ``gemini_server`` is such a server, and the variables of the environment that the official SDKs read name it.
``python -m alhena.testing`` runs one for applications in other languages. Guide: docs/testing-your-app.md
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alhena.content import Text, Thought, ToolCall
from alhena.testing.script import Block, Failure, Reply, Request, Script

__all__ = ["Block", "Failure", "Reply", "Request", "Script", "Text", "Thought", "ToolCall", "gemini_server"]


@contextmanager
def gemini_server(model: Path | str | None = None, port: int = 0) -> Iterator[Script]:
    """Runs a server on the loopback interface; yields the script of its answers, whose ``url`` is the server's address.

    With the folder of a ``model``, that model answers where the script has no answer. ``port`` 0 is any free port.
    """
    # The server loads JAX and FastAPI: only when one starts.
    from alhena.testing.server import running

    with running(None if model is None else Path(model), port) as script:
        yield script
