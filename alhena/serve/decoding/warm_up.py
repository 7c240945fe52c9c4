"""Compilation before the first requests: every program of the engine runs once, and compiled programs are kept on disk.

Shapes do not depend on requests but for a few buckets: two lengths of chunks of a prompt, the sizes of one image, and the grids of
generated images. After the warm-up a server compiles nothing, except for grids that no aspect ratio of the API has.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from alhena.batch import Example
from alhena.content import Content
from alhena.model.attention.paged_cache import PAGE
from alhena.progress import progress_bar
from alhena.serve.decoding import buckets
from alhena.serve.decoding.sampling.sampler import Sampling
from alhena.serve.decoding.sequence import CHUNK_TOKENS
from alhena.serve.decoding.slots import encode_audio, encode_images
from alhena.serve.engine import ASPECT_HEIGHT, Engine
from alhena.tokens.encode import Encoder
from alhena.tokens.images import code_grid

log = logging.getLogger("alhena.serve")
# Width by height: the aspect ratios that the API offers.
RATIOS = (1.0, 2 / 3, 3 / 2, 3 / 4, 4 / 3, 4 / 5, 5 / 4, 9 / 16, 16 / 9, 21 / 9)


def cache_folder() -> Path:
    """Where compiled programs are kept: in the user's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alhena" / "compiled"


def keep_compiled(folder: Path | None = None) -> None:
    """Programs that are compiled from now on are kept on disk, and read from there by later processes."""
    folder = folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Reading the smallest program takes less time than compiling it.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def warm_up(engine: Engine) -> MediaWarmUp:
    """Runs the programs that every answer needs, under a progress bar.

    The others, for media in and out, run in the thread that it starts and returns: requests without media do not wait for them,
    and one with media compiles what it needs itself. The thread ends soon after its ``stop`` is set.
    """
    empty = engine.encode([Content("user", ())])
    work = [*_text(engine, empty)]
    with progress_bar() as progress:
        bar = progress.add_task("compile", total=len(work))
        for one in work:
            one()
            progress.update(bar, advance=1)
    thread = MediaWarmUp(engine, empty)
    thread.start()
    return thread


class MediaWarmUp(threading.Thread):
    """Runs the programs for media. Their time limits no answer of text: they do not use the running batch."""

    def __init__(self, engine: Engine, empty: Example) -> None:
        super().__init__(name="alhena-warm-up", daemon=True)
        self._engine, self._empty, self.stop = engine, empty, threading.Event()

    def run(self) -> None:
        for one in _media(self._engine, self._empty):
            if self.stop.is_set():
                return
            try:
                one()
            except Exception:
                # The first request with such a medium says what is wrong.
                log.exception("a program for media could not be run")


def _text(engine: Engine, empty: Example) -> Iterator[Callable[[], object]]:
    """What every answer needs, one function for each program or two."""
    for length in CHUNK_TOKENS[: CHUNK_TOKENS.index(PAGE) + 1]:
        prompt = empty.with_tokens(np.resize(empty.tokens, length))
        yield lambda prompt=prompt: [*engine.stream(prompt, Sampling(max_tokens=2, temperature=1.0))]  # type: ignore[misc]
    for rows in engine.batch.row_sizes:
        yield lambda rows=rows: engine.batch.warm_up(rows)  # type: ignore[misc]


def _media(engine: Engine, empty: Example) -> Iterator[Callable[[], object]]:
    """The encoders, each with the sizes of one image and one chunk of audio, and the image decoder."""
    c, none = engine.config, empty.emptied()
    if c.vision is not None:
        most = max_patches(engine)
        for patches in (n for n in buckets.PATCHES[1:] if n <= buckets.bucket(buckets.PATCHES, most, "image patches")):
            one = replace(
                none,
                patches=np.zeros((min(patches, most), *none.patches.shape[1:]), none.patches.dtype),
                patch_positions=np.zeros((min(patches, most), 2), np.int32),
                patch_images=np.ones(min(patches, most), np.int32),
            )
            yield lambda one=one: encode_images(engine.params, c, buckets.padded([one]))  # type: ignore[misc]
    if c.audio is not None:
        frames = np.zeros((1, *none.frames.shape[1:]), none.frames.dtype)
        one = replace(none, frames=frames, frame_lengths=np.full(1, frames.shape[1], np.int32))
        yield lambda: encode_audio(engine.params, c, buckets.padded([one]))
    if engine.image_decoder is not None and isinstance(engine.encoder, Encoder):
        decoder, codes = engine.image_decoder, engine.encoder.budget.image_out_codes
        grids = {code_grid(ASPECT_HEIGHT, round(ASPECT_HEIGHT * ratio), codes) for ratio in RATIOS}
        for grid in sorted(grids):
            yield lambda grid=grid: decoder(np.zeros(grid, np.int32))  # type: ignore[misc]


def max_patches(engine: Engine) -> int:
    """Patches of the largest image."""
    assert engine.config.vision is not None
    pool = engine.config.vision.pool**2
    if isinstance(engine.encoder, Encoder):
        return engine.encoder.budget.image_tokens * pool
    return engine.encoder.settings.budgets.image_tokens * pool
