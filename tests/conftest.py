"""Fixtures of all tests: the complete pipeline of the smoke recipe, run once; small random models; documents and encoded examples."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import jax
import numpy as np
import pytest

from alhena.content import Audio, Content, Document, Image, Text
from alhena.media import encode_audio, encode_png
from alhena.model import config, model
from alhena.pytest_plugin import gemini_server, gemini_server_of_session  # noqa: F401
from alhena.tokens.encode import Encoder
from alhena.tokens.examples.store import write_examples
from alhena.tokens.text import tokenizer
from alhena.tokens.vocabulary import Vocabulary
from tests.compiled import share_compiled

os.environ.setdefault("JAX_PLATFORMS", "cpu")
share_compiled()
# httpx gives up after five seconds: a machine that compiles for another test may take longer to answer.
for _phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _phase, 120.0)
# A shell in the background ignores SIGINT for its jobs, and the processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A process may have 65,530 memory maps; a compiled function takes several.
MAX_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory_maps() -> Iterator[None]:
    """Frees compiled functions before the process runs out of memory maps: LLVM then crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of the smoke recipe: every stage, from raw documents to the report.

    The processes of one test run share it: the first one makes it while the others wait. The stages skip what is finished.
    """
    from alhena.pipeline import run_pipeline
    from recipes import starter

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_pipeline(starter.smoke(), shared / "smoke")
    return shared / "smoke"


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return make_encoder()


def make_encoder() -> Encoder:
    """A small tokenizer, and the settings of small encoders."""
    lines = ["What colour is the circle? red\n", "Transcribe. forty seven", "Draw a blue star.", "x 12 y 34;"]
    text_tokenizer = tokenizer.TextTokenizer.from_bytes(tokenizer.train(lines * 30, 330))
    vision = config.Vision(width=16, layers=2, heads=2, hidden=24)
    audio = config.Conformer(width=16, layers=2, heads=2, hidden=24)
    return Encoder(text_tokenizer, Vocabulary(text_tokenizer.size, 64), vision, audio)


@pytest.fixture(scope="session")
def tiny(encoder: Encoder) -> tuple[model.Params, config.Model]:
    return make_tiny(encoder)


def make_tiny(encoder: Encoder) -> tuple[model.Params, config.Model]:
    """A random model with every part, float32. Norm scales and position embeddings are random too: each has an effect."""
    v = encoder.vocabulary
    decoder = config.Decoder(width=32, layers=3, heads=4, head_dim=8, hidden=64)
    c = config.Model(v.size, v.control("<img>"), v.control("<aud>"), decoder, encoder.vision, encoder.audio, (16, 4))
    params = model.init(jax.random.key(0), c)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves), c


def random_image(seed: int, height: int = 32, width: int = 48) -> Image:
    return Image(encode_png(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)))


def random_audio(seed: int, seconds: float = 1.5) -> Audio:
    return Audio(encode_audio(0.3 * np.random.default_rng(seed).normal(size=int(16000 * seconds)).astype(np.float32)))


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """One of each kind of input: text, an image, audio longer than a chunk, both together."""
    ask = Text("What colour is the circle?")
    kinds = [
        (ask,),
        (random_image(1), ask),
        (random_audio(2), ask),
        (random_image(3, 64, 32), random_audio(4, 0.6), random_image(5), ask),
    ]
    answer = Content("model", (Text("red"),))
    first = Document((Content("user", kinds[0]), answer), "0", "mine")
    return [replace(first, contents=(Content("user", parts), answer), id=str(i)) for i, parts in enumerate(kinds)]


@pytest.fixture(scope="session")
def data(encoder: Encoder, documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of encoded examples: two sources, each with its documents six times."""
    folder = tmp_path_factory.mktemp("data")
    inner_shapes = {"patches": (192,), "frames": (128, 128)}
    for name, group in (("a", documents[:2]), ("b", documents[2:])):
        examples = [e for d in group * 6 for e in encoder.encode(d, 256)]
        write_examples(folder / f"{name}.arrow", examples, inner_shapes)
    return folder
