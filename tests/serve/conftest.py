"""A tiny random model in a folder, its engine, and a server of it over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from alhena.model import config, image_tokenizer, model
from alhena.model.storage.weights import save_model
from alhena.serve.engine import Engine
from alhena.serve.gemini.app import create_app, listen, make_server
from alhena.serve.gemini.server.settings import Settings
from alhena.testing.server import run_in_thread
from alhena.tokens.encode import Encoder
from tests.serve.chromium import Page, browser
from tests.serve.scripted_api import ScriptedApi


def write_tiny(folder: Path, encoder: Encoder, tiny: tuple[model.Params, config.Model]) -> Path:
    """A complete model folder of random weights."""
    folder.mkdir(parents=True)
    save_model(folder, *tiny, {"name": "tiny"})
    encoder.save(folder)
    image_config = config.ImageTokenizer(structure=(4, 4), color=(4,), width=16)
    image_tokenizer.save(folder, image_tokenizer.init(jax.random.key(1), image_config), image_config)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny, encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", encoder, tiny)


@pytest.fixture(scope="session")
def tiny_engine(tiny_folder: Path) -> Engine:
    return Engine.load(tiny_folder)


@contextmanager
def running(engine: Engine, name: str, settings: Settings = Settings()) -> Iterator[str]:
    """Runs a server in a thread; yields its URL."""
    with listen("127.0.0.1", 0) as listener:
        with run_in_thread(make_server(create_app(engine, name, settings), "error"), listener) as thread:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny_address(tiny_engine: Engine) -> Iterator[str]:
    with running(tiny_engine, "tiny") as address:
        yield address


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a headless Chromium."""
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def script(tab: Page) -> Iterator[tuple[ScriptedApi, str]]:
    """The page over scripted answers, and its URL."""
    api = ScriptedApi()
    with api.running() as address:
        yield api, address
        tab.open("about:blank")
