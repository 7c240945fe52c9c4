"""Opens damaged model folders: each gives a model or a one-line error, within bounded memory and time.

    python -m tests.robustness.damaged_models            all of them, 200 per process, with 4 GiB of address space each
    python -m tests.robustness.damaged_models --few 30   a random sample of each kind

A damage is a name and a function that changes an intact folder. Folders of Alhena are opened as by ``alhena chat``, those in Hugging
Face's layout as by ``alhena import``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import operator
import os
import queue
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from alhena.model import config, image_tokenizer, model
from alhena.model.families.export_weights import write
from alhena.model.families.import_weights import import_weights
from alhena.model.families.open_weights import open_folder as open_weights
from alhena.model.storage.tensor_writer import write_arrays
from alhena.model.storage.weights import save_model
from alhena.serve.engine import Engine
from alhena.tokens.encode import Encoder
from alhena.tokens.text import tokenizer
from alhena.tokens.vocabulary import Vocabulary

MEMORY = 4 * 2**30  # bytes of address space
TIMEOUT = 60.0  # seconds for one folder: far more than it takes on a busy machine
FOLDERS_PER_PROCESS = 200
BAD_VALUES: dict[str, Any] = {
    "huge": 10**13, "beyond": 10**400, "zero": 0, "negative": -1, "fraction": 2.5, "text": "64", "true": True, "null": None,
    "list": [1, 2], "object": {"a": 1}, "infinite": float("inf"), "nan": float("nan"), "small": 3,
}  # fmt: skip
Damage = tuple[str, Callable[[Path], Any]]


# ── intact folders ──────────────────────────────────────────────────────────────────────────────────────────


def make_alhena(folder: Path) -> None:
    """Writes a tiny random model as a stage does."""
    text = tokenizer.TextTokenizer.from_bytes(tokenizer.train(["What colour is it? red\n", "x 12 y 34;"] * 30, 300))
    vision, audio = config.Vision(8, 1, 2, 8, side=8), config.Usm(8, 1, 2, 8, mels=8, chunk=32, channels=(2, 2))
    encoder = Encoder(text, Vocabulary(text.size, 64), vision, audio)
    v = encoder.vocabulary
    decoder = config.Decoder(width=8, layers=2, heads=2, head_dim=4, hidden=8)
    c = config.Model(v.size, v.control("<img>"), v.control("<aud>"), decoder, vision, audio, (16, 4))
    image = config.ImageTokenizer((16,), (4,), 8)
    save_model(folder, model.init(jax.random.key(0), c), c, {"name": "tiny"})
    image_tokenizer.save(folder, image_tokenizer.init(jax.random.key(0), image), image)
    encoder.save(folder)


def make_hugging_face(folder: Path) -> None:
    """Writes a tiny random Gemma 3 in Hugging Face's layout, in two shards."""
    decoder = config.Decoder(8, 2, 2, 4, 8, window=4, global_every=2, local_rope_base=1e4, rope_base=1e6)
    c = config.Model(40, -1, -1, decoder, None, None)
    write(folder, model.init(jax.random.key(0), c), c)
    arrays, names = load_file(folder / "model.safetensors"), ("model-00001-of-00002", "model-00002-of-00002")
    weight_map = {name: f"{names[i % 2]}.safetensors" for i, name in enumerate(sorted(arrays))}
    for shard in names:
        shard_arrays = {name: array for name, array in arrays.items() if weight_map[name] == f"{shard}.safetensors"}
        write_arrays(folder / f"{shard}.safetensors", shard_arrays)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def make_gemma4(folder: Path) -> None:
    """Copies a tiny Gemma 4 with encoders."""
    golden = Path(__file__).parents[1] / "model" / "golden" / "open" / "gemma4_small"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / name, folder)


def open_alhena(folder: Path) -> None:
    Engine.load(folder)


def open_hugging_face(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        import_weights(open_weights(folder), Path(out))


# ── damages ────────────────────────────────────────────────────────────────────────────────────────────────


def write_json(path: Path, value: Any) -> None:
    sys.set_int_max_str_digits(0)
    path.write_text(json.dumps(value))


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Key paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _leaves(inner, (*path, key))


def _edit(file: str, path: tuple[Any, ...], edit: Callable[[Any, Any], None]) -> Callable[[Path], None]:
    """A damage that calls ``edit`` with the container of the value at a key path, and its last key."""

    def damage(folder: Path) -> None:
        stored = json.loads((folder / file).read_text())
        container = stored
        for key in path[:-1]:
            container = container[key]
        edit(container, path[-1])
        write_json(folder / file, stored)

    return damage


def _set(file: str, path: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    return _edit(file, path, lambda container, key: operator.setitem(container, key, value))


def _delete(file: str, path: tuple[Any, ...]) -> Callable[[Path], None]:
    return _edit(file, path, operator.delitem)


def json_damages(folder: Path, file: str) -> Iterator[Damage]:
    """Every value of a JSON file replaced or deleted, unknown keys, and invalid JSON."""
    for path in _leaves(json.loads((folder / file).read_text())):
        name = f"{file}:{'.'.join(map(str, path))}"
        for kind, value in BAD_VALUES.items():
            yield f"{name} {kind}", _set(file, path, value)
        yield f"{name} deleted", _delete(file, path)
    yield f"{file} unknown key", _set(file, ("colour_of_weights",), 3)
    for kind, data in {
        "empty": b"", "no JSON": b"{", "a list": b"[]", "a number": b"7", "null": b"null", "latin-1": b'{"a": "\xe9"}',
        "deep": b"[" * 100_000, "deep object": b'{"config":' * 50_000, "long number": b'{"config": ' + b"9" * 100_000 + b"}",
        "twice": b'{"config": {}, "config": {}}', "surrogate": b'{"\\ud800": "\\udfff"}', "pickle": b"\x80\x04K\x01.",
    }.items():  # fmt: skip
        yield f"{file} {kind}", lambda folder, data=data: (folder / file).write_bytes(data)  # type: ignore[misc]


def _rewrite(path: Path, change: Callable[[dict[str, Any], bytearray], None]) -> None:
    """Changes a safetensors file's header and data, without any check."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    change(header, rest)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + rest)


def tensor_damages(file: str) -> Iterator[Damage]:
    """A safetensors file truncated, overwritten, or with a header that does not match its data."""

    def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
        return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))

    def header(change: Callable[[dict[str, Any], str], Any], which: int = -1) -> Callable[[Path], None]:
        def damage(folder: Path) -> None:
            def inner(h: dict[str, Any], _: bytearray) -> None:
                change(h, sorted(name for name in h if name != "__metadata__")[which])

            _rewrite(folder / file, inner)

        return damage

    for fraction in (0.0, 0.001, 0.3, 0.9, 0.9999):
        yield f"{file} truncated to {fraction}", bytes_of(lambda data, n=fraction: data[: int(len(data) * n)])  # type: ignore[misc]
    yield f"{file} one extra byte", bytes_of(lambda data: data + b"\0")
    for size in (0, 2**20, 2**40, 2**63 + 1, 2**64 - 1):
        yield f"{file} header of {size}", bytes_of(lambda data, size=size: size.to_bytes(8, "little") + data[8:])  # type: ignore[misc]
    yield f"{file} ones", bytes_of(lambda data: data[:-64] + b"\xff" * 64)
    yield f"{file} pickle", bytes_of(lambda data: b"\x80\x04K\x01.")
    yield (
        f"{file} LFS pointer",
        bytes_of(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    )
    for kind, shape in {
        "huge": [10**13], "overflow": [2**40, 2**40], "negative": [-1, 4], "text": ["8"], "nested": [[8]], "null": None,
        "fraction": [0.5], "zero": [0], "scalar": [], "long": [1] * 10_000,
    }.items():  # fmt: skip
        yield f"{file} shape {kind}", header(lambda h, name, shape=shape: h[name].update(shape=shape))  # type: ignore[misc]
    for kind in ("F64", "I64", "I32", "U8", "F16", "BF16", "BOOL", "F8_E4M3", "F4", "X", 3, None):
        yield f"{file} dtype {kind}", header(lambda h, name, kind=kind: h[name].update(dtype=kind))  # type: ignore[misc]
    for offsets in ([0, 10**13], [10**13, 0], [-4, 4], [0], "x", None, [0.5, 4]):
        yield f"{file} offsets {offsets}", header(lambda h, name, o=offsets: h[name].update(data_offsets=o))  # type: ignore[misc]
    for which in (0, 1, -1):
        yield f"{file} without tensor {which}", header(lambda h, name: h.pop(name), which)
        yield f"{file} renamed tensor {which}", header(lambda h, name: h.update({name + ".bias": h.pop(name)}), which)
    yield f"{file} metadata", header(lambda h, name: h.update(__metadata__={"a": [1]}))
    yield f"{file} deleted", lambda folder: (folder / file).unlink()
    yield f"{file} folder", lambda folder: _replace(folder / file, Path.mkdir)
    yield f"{file} link out", lambda folder: _replace(folder / file, lambda path: path.symlink_to("/etc/hostname"))
    yield f"{file} link to itself", lambda folder: _replace(folder / file, lambda path: path.symlink_to(file))
    yield f"{file} device", lambda folder: _replace(folder / file, lambda path: path.symlink_to("/dev/zero"))
    yield f"{file} pipe", lambda folder: _replace(folder / file, os.mkfifo)


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def byte_damages(file: str, count: int) -> Iterator[Damage]:
    """Random bytes of a file changed."""

    def damage(folder: Path, seed: int) -> None:
        rng, data = np.random.default_rng(seed), bytearray((folder / file).read_bytes())
        for i in rng.integers(0, len(data), rng.integers(1, 9)):
            data[i] = rng.integers(0, 256)
        (folder / file).write_bytes(data[: rng.integers(1, len(data))] if seed % 3 == 0 else data)

    for seed in range(count):
        yield f"{file} random bytes {seed}", lambda folder, seed=seed: damage(folder, seed)  # type: ignore[misc]


def _copy(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes())


def index_damages() -> Iterator[Damage]:
    index, name = "model.safetensors.index.json", "model.norm.weight"
    for target in (
        "../model-00001-of-00002.safetensors",
        "/etc/passwd",
        "gone.safetensors",
        "config.json",
        "",
        ".",
        7,
        None,
        {},
    ):
        yield f"index → {target!r}", _set(index, ("weight_map", name), target)
    yield "index names the other shard", _set(index, ("weight_map", name), "model-00001-of-00002.safetensors")
    yield "index has an extra tensor", _set(index, ("weight_map", "model.more"), "model-00001-of-00002.safetensors")
    yield "index lacks a tensor", _delete(index, ("weight_map", name))
    shard = "model-00001-of-00002.safetensors"
    yield "an extra shard", lambda f: _copy(f / shard, f / "model-00003-of-00003.safetensors")
    yield "both layouts", lambda f: _copy(f / shard, f / "model.safetensors")
    yield "identical shards", lambda f: _copy(f / shard, f / "model-00002-of-00002.safetensors")


def damages(kind: str, folder: Path) -> list[Damage]:
    """All damages of an intact folder of one kind, in a fixed order."""
    if kind == "alhena":
        out = [d for f in ("model.json", "vocabulary.json", "image_tokenizer.json") for d in json_damages(folder, f)]
        out += [d for f in ("weights.safetensors", "image_tokenizer.safetensors") for d in tensor_damages(f)]
        files = ("weights.safetensors", "image_tokenizer.safetensors", "text.model")
        return out + [d for f in files for d in byte_damages(f, 30)]
    if kind == "gemma4":
        file = "model.safetensors"
        return [*json_damages(folder, "config.json"), *tensor_damages(file), *byte_damages(file, 30)]
    out = [*json_damages(folder, "config.json"), *index_damages()]
    shard = "model-00001-of-00002.safetensors"
    return [*out, *tensor_damages(shard), *byte_damages(shard, 30), *byte_damages("model.safetensors.index.json", 30)]


# ── trials ─────────────────────────────────────────────────────────────────────────────────────────────────


def _try_all(kind: str, intact: Path, names: list[str], results: Any) -> None:
    """Opens damaged copies one after the other. Puts (name, None) at the start and (name, result) at the end of each, then None."""
    open_folder = open_alhena if kind == "alhena" else open_hugging_face
    known = dict(damages(kind, intact))
    # Imports and compilation happen before memory is limited.
    open_folder(intact)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    for name in names:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            shutil.copytree(intact, folder)
            known[name](folder)
            results.put((name, None))
            try:
                open_folder(folder)
                result = "opened"
            except ValueError as error:
                one_line = len(str(error)) < 1000 and "\n" not in str(error).strip()
                result = f"refused: {error}" if one_line else f"FAILED: a long message: {str(error)[:300]}"
            except BaseException as error:
                result = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
            results.put((name, result))
    results.put(None)


def trial(kind: str, intact: Path, names: list[str]) -> dict[str, str]:
    """The result of each damage. When a process dies or hangs, its current damage has failed."""
    spawn = multiprocessing.get_context("spawn")
    out: dict[str, str] = {}
    remaining = list(names)
    while remaining:
        chunk, results = remaining[:FOLDERS_PER_PROCESS], spawn.Queue()
        process = spawn.Process(target=_try_all, args=(kind, intact, chunk, results), daemon=True)
        process.start()
        current, alive, ready = chunk[0], True, False
        while alive:
            try:
                message = results.get(timeout=TIMEOUT if ready else 10 * TIMEOUT)
            except (queue.Empty, EOFError, OSError):
                out[current], alive = f"FAILED: no answer (exit code {process.exitcode})", False
                continue
            if message is None:
                break
            (current, result), ready = message, True
            if result is not None:
                out[current] = result
        process.kill()
        process.join()
        remaining = [name for name in remaining if name not in out]
    return out


def main(few: int | None = None, show: bool = False) -> dict[str, str]:
    """Tries all damages, or ``few`` random ones of each kind of folder; returns the failures."""
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as parent:
        makers = {"alhena": make_alhena, "hugging_face": make_hugging_face, "gemma4": make_gemma4}
        for kind, make in makers.items():
            intact = Path(parent) / kind
            intact.mkdir()
            make(intact)
            names = [name for name, _ in damages(kind, intact)]
            names = names if few is None else list(np.random.default_rng(0).permutation(names)[:few])
            results = trial(kind, intact, names)
            opened = [name for name, result in results.items() if result == "opened"]
            failed = {f"{kind} {name}": result for name, result in results.items() if result.startswith("FAILED")}
            print(f"{kind}: {len(results)} folders, {len(opened)} opened, {len(failed)} failed")
            if show:
                print(*(f"  {name}: {result}" for name, result in results.items()), sep="\n")
            failures |= failed
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int)
    parser.add_argument("--show", action="store_true")
    all_failures = main(**vars(parser.parse_args()))
    print(*(f"{name}: {result}" for name, result in all_failures.items()), sep="\n")
    sys.exit(bool(all_failures))
