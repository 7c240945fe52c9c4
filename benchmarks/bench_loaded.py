"""Memory of a loaded model beside the size of its file.

    python benchmarks/bench_loaded.py --models nano=alhena/nano gemma=models/gemma-int4

Each model is loaded in a process of its own, which has loaded another small one before, and every page of its weights is read. Measured is
the growth of the process: its proportional set size, and the anonymous part of it (arrays that are copied; all others are pages of the
file). ``random`` adds a decoder of one billion parameters in 4 bits, with random weights. Writes benchmarks/results/loaded.json.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np

from alhena.model import config, model
from alhena.model.quantized.layout import packed_shapes
from alhena.model.quantized.types import type_table
from alhena.model.spec import named
from alhena.model.storage.folders import load_model
from alhena.model.storage.tensor_writer import Declared, write_tensors
from alhena.model.storage.weights import WEIGHTS, save_model, write_config

TINY = config.Decoder(width=32, layers=1, heads=2, head_dim=16, hidden=64)
# The shapes of Gemma 3 1B.
LARGE = config.Decoder(width=1152, layers=26, heads=4, kv_heads=1, head_dim=256, hidden=6912)
VOCABULARY = 262_144


@dataclass(frozen=True)
class Bench:
    models: tuple[str, ...] = ("nano=alhena/nano",)  # NAME=FOLDER
    random: bool = True
    out: Path = Path(__file__).parent / "results" / "loaded.json"
    worker: Annotated[str, "internal: the folder that a process loads"] = ""


def memory() -> dict[str, int]:
    """Bytes of this process."""
    rows = re.findall(r"^(\w+): +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in rows}


def work(folder: Path) -> None:
    """Prints the growth of this process when it loads a model."""
    with tempfile.TemporaryDirectory() as temporary:
        c = config.Model(64, 1, 2, TINY, None, None)
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.weights(c))
        save_model(Path(temporary), zeros, c, {})
        load_model(Path(temporary))
    gc.collect()
    before = memory()
    params, _ = load_model(folder)
    total = sum(int(np.asarray(w).reshape(-1).view(np.uint8)[::4096].sum()) for w in jax.tree.leaves(params))
    gc.collect()
    after = memory()
    grown = {name: after[name] - before[name] for name in ("Pss", "Anonymous")}
    print(json.dumps({"file": (folder / WEIGHTS).stat().st_size, **grown, "checksum": total}))


def write_random(folder: Path) -> None:
    """A model folder with random weights of 4 and 8 bits."""
    folder.mkdir()
    c = config.Model(VOCABULARY, 1, 2, LARGE, None, None)
    specs, rng, declared = named(model.weights(c)), np.random.default_rng(0), {}
    for name, entry in type_table(model.weights(c)).items():
        s = specs[name]
        if entry.bits is None:
            declared[name] = Declared("F32", s.shape)
            continue
        inner, outputs = s.shape[:-3:-1] if s.contracted == -1 else s.shape[-2:]
        packed, scales = packed_shapes(entry.bits, inner, outputs)
        declared[f"{name}.packed"] = Declared("U8" if entry.bits == 4 else "I8", (*s.shape[:-2], *packed))
        declared[f"{name}.scales"] = Declared("F16", (*s.shape[:-2], *scales))
    with write_tensors(folder / WEIGHTS, declared) as file:
        for name in declared:
            with file.open(name) as target:
                if name.endswith(".packed"):
                    target.reshape(-1).view(np.uint8)[:] = np.frombuffer(rng.bytes(target.nbytes), np.uint8)
                else:
                    target[...] = 0.01
    write_config(folder, c, {})


def main(bench: Bench) -> None:
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        models = {name: Path(path) for name, _, path in (entry.partition("=") for entry in bench.models)}
        if bench.random:
            models["random, 1 B"] = Path(temporary) / "random"
            write_random(models["random, 1 B"])
        for name, folder in models.items():
            command = [sys.executable, __file__, "--worker", str(folder)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            result[name] = {**found, "share_of_the_file": round(found["Pss"] / found["file"], 4)}
            print(name, result[name], flush=True)
    bench.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]))
    else:
        import tyro

        main(tyro.cli(Bench, description=__doc__))
