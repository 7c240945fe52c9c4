"""Pytest plugin for the tests that google-genai ships: every client that is not Vertex AI's talks to the server under test.

It runs in the environment of the SDK, which has none of Alhena.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def pytest_collection_finish(session: Any) -> None:
    """The suite imports the SDK a second time, as a package of its own: each copy of the module has a client class."""
    for name, module in list(sys.modules.items()):
        if name.endswith("genai._api_client"):
            _redirect(module.BaseApiClient)


def _redirect(client: Any) -> None:
    made = client.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if not self.vertexai:
            self._http_options.base_url = os.environ["SERVER_UNDER_TEST"]

    client.__init__ = init
