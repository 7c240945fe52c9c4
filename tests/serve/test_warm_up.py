"""The start of a server: what is imported, and what is compiled before the first request."""

from __future__ import annotations

import subprocess
import sys

import jax

from alhena.content import Content, Text
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.decoding.warm_up import warm_up
from tests.conftest import random_image

# Libraries of training and of the API, which take a second to import.
NOT_FOR_CHAT = ("grain", "orbax", "optax", "pyarrow", "matplotlib", "google", "fastapi", "scipy", "sklearn")


def test_a_chat_imports_no_library_of_training_or_of_the_api():
    code = (
        "import sys, alhena.cli.commands, alhena.serve.chat; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*done.stdout.split()} & {*NOT_FOR_CHAT}


def test_after_the_warm_up_nothing_is_compiled(tiny_engine):
    media = warm_up(tiny_engine)
    media.join()
    compiled = list[str]()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        prompts = [[Content("user", (Text("What is this?"),))], [Content("user", (random_image(0), Text("red")))]]
        tiny_engine.generate(prompts, Sampling(max_tokens=4))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_the_warm_up_of_media_stops(tiny_engine):
    media = warm_up(tiny_engine)
    media.stop.set()
    media.join(60)
    assert not media.is_alive()
