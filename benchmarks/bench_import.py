"""Import of a folder as large as Gemma 4 E2B (10 GB of random bfloat16 weights): minutes and peak memory, in a process of its own.

    python benchmarks/bench_import.py --work FOLDER            FOLDER: on a disk with room for the files and their import
    python benchmarks/bench_import.py --work FOLDER --layers 5 --vocabulary 8192        a small one, to try it

Peak memory is the largest resident set: pages of memory-mapped files that are in use count, the system's file cache does not.
Writes benchmarks/results/import.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import tyro

from alhena.model import config
from alhena.model.families.model_config import described, write_config
from alhena.model.families.open_weights import tensor_table
from alhena.model.families.tensor_map import sources
from alhena.model.storage.tensor_writer import Declared, write_tensors

BLOCK = 2**22


@dataclass(frozen=True)
class Bench:
    work: Path  # a folder for the files
    weights: tuple[Literal["bfloat16", "int4"], ...] = ("bfloat16",)  # one import each
    layers: int = 35
    vocabulary: int = 262_144
    out: Path = Path(__file__).parent / "results" / "import.json"
    worker: Annotated[str, "internal: dtype of the weights of one import"] = ""


def e2b(layers: int, vocabulary: int) -> config.Model:
    """Gemma 4 E2B's sizes, with its encoders."""
    decoder = config.Decoder(
        width=1536, layers=layers, heads=8, head_dim=256, hidden=6144, kv_heads=1, window=512, global_every=5,
        rope_base=1e6, local_rope_base=1e4, query_pre_attn_scalar=1.0, final_logit_softcap=30.0, value_norm=True,
        global_head_dim=512, global_rope_fraction=0.25, kv_sharing_layers=layers * 20 // 35 // 5 * 5, kv_sharing_hidden=12_288,
        layer_scalar=True, per_layer_inputs=config.PerLayerInputs(256, vocabulary),
    )  # fmt: skip
    vision = config.GemmaVision(768, 16, 12, 64, 3072, clipped=True)
    audio = config.Usm(
        1024, 12, 8, 4096, mels=128, chunk=3000, stack=1, left=12, variant="gemma4", clipped=True, output=1536
    )
    ids = {"image_token": vocabulary - 1, "audio_token": vocabulary - 2, "video_token": vocabulary - 3}
    return config.Model(vocabulary, decoder=decoder, vision=vision, audio=audio, replace_placeholders=True, **ids)


def write_folder(folder: Path, c: config.Model) -> int:
    """A folder of random weights in Hugging Face's layout; returns its bytes."""
    declared = {
        name: Declared("BF16", source.shape) for source in sources(tensor_table(described(c))) for name in source.names
    }
    random = np.random.default_rng(0)
    block = (0.02 * random.normal(size=BLOCK + 4099).astype(np.float32)).astype(ml_dtypes.bfloat16)
    with write_tensors(folder / "model.safetensors", declared) as file:
        for name in declared:
            with file.open(name) as array:
                flat = array.reshape(-1)
                for start in range(0, flat.size, BLOCK):
                    part = flat[start : start + BLOCK]
                    # Not the same values in every row.
                    first = start // BLOCK % 4099
                    part[:] = block[first : first + part.size]
    (folder / "config.json").write_text(json.dumps(write_config(c, "bfloat16")))
    return (folder / "model.safetensors").stat().st_size


def peak_mb() -> float:
    """Largest resident set of this process so far. Unlike that of ``getrusage`` it does not include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def work(bench: Bench) -> None:
    """One import and its loading, in a process of its own; prints a line of JSON."""
    from alhena.model.families.import_weights import import_weights
    from alhena.model.families.open_weights import open_folder
    from alhena.model.storage.weights import load_model

    before, started, out = peak_mb(), time.perf_counter(), bench.work / bench.worker
    import_weights(open_folder(bench.work / "hf"), out, bench.worker)  # type: ignore[arg-type]
    found = {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), "before_mb": before}
    found["result_mb"] = (out / "weights.safetensors").stat().st_size / 2**20
    started = time.perf_counter()
    load_model(out)
    print(json.dumps({**found, "load_seconds": time.perf_counter() - started}))


def main(bench: Bench) -> None:
    if bench.worker:
        work(bench)
        return
    shutil.rmtree(bench.work / "hf", ignore_errors=True)
    c = e2b(bench.layers, bench.vocabulary)
    started = time.perf_counter()
    size = write_folder(bench.work / "hf", c)
    print(f"{size / 2**20:,.0f} MB written in {time.perf_counter() - started:.0f} s")
    results: dict[str, Any] = {"source_mb": size / 2**20, "cores": os.cpu_count(), "machine": platform.machine()}
    results["load_average"] = os.getloadavg()[0]
    for weights in bench.weights:
        command = [sys.executable, __file__, "--work", str(bench.work), "--worker", weights]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        results[weights] = found
        print(weights, {name: round(value, 1) for name, value in results[weights].items()})
        shutil.rmtree(bench.work / weights)
    shutil.rmtree(bench.work / "hf")
    bench.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench))
