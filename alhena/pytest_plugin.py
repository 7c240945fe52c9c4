"""The pytest plugin: the fixture ``gemini_server``. Installed with the package, it imports nothing heavy until a test asks for it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

# With these, an SDK would not ask the server that the test runs.
OTHER_VARIABLES = ("GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE")


# The fixtures are no generators: an import hook that wraps functions would hide from pytest that they are.
@pytest.fixture(scope="session")
def gemini_server_of_session(request: pytest.FixtureRequest) -> Any:
    """One server for all tests, so that a client which is made once reaches it in each of them."""
    from alhena.testing import gemini_server as start

    stack = ExitStack()
    request.addfinalizer(stack.close)  # noqa: PT021
    return stack.enter_context(start())


@pytest.fixture
def gemini_server(
    gemini_server_of_session: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Any:
    """An offline Gemini API with an empty :class:`alhena.testing.Script`; the environment names it to the official SDKs."""
    for name in OTHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in gemini_server_of_session.environment.items():
        monkeypatch.setenv(name, value)
    gemini_server_of_session.reset()
    request.addfinalizer(gemini_server_of_session.reset)  # noqa: PT021
    return gemini_server_of_session
