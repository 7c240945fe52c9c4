"""Exported GGUF files in llama.cpp: does it load them, are its tokens and its logits ours?

    python benchmarks/bench_export.py --llama PYTHON --data FOLDER --models nano=alhena/nano starter=runs/starter/models/assistant …

PYTHON is an interpreter that has ``xllamacpp``; FOLDER has the texts (benchmarks/bench_open_weights.py). A name that ends in ``:4`` or
``:8`` is quantized first, one that ends in ``:float`` is exported with dequantized weights. ``golden`` models are those of the tests,
in their families' architectures, with random weights. llama.cpp runs with a cache of float32 and without flash
attention; it rounds the inputs of GELU to float16, and the activations of quantized matrices to 8 bits, as we do. Writes benchmarks/results/export.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
GOLDEN = Path(__file__).parents[1] / "tests/model/golden"
GOLDENS = ("gemma", "gemma2", "gemma3", "open/gemma3_text", "open/gemma4_small", "open/gemma4_large", "open/gemma4_moe")
# Ids that the logits are compared after.
LENGTH = 200
# Texts that a tokenizer may treat in a special way.
ODD = [
    "", " ", "  ", "   a", "a ", "a   b", "\n", "\n\n", "a\nb", "\n a", " \n ", "\t", "a\tb\r\n", "▁", "a▁b", "<bos>", "<end>",
    "</s>", "<s>", "<unk>", "<0x41>", "<0x0A>", "<user> Hi <end>", "<start_of_turn>user\nHi<end_of_turn>", "<code 5>", "[PAD3]",
    "<time 3> <rows 4>", "007 3.14159 1e-9 ١٢٣ ①②", "👩‍👩‍👧‍👦🏽 🇨🇭🫠", "e\u0301 é ﬁ Å ｱ", "\u200b\ufeff\u00ad", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓂀 𒀀",
    "مرحبا بالعالم", "שלום", "हिन्दी ไทย 中文，。 한국어 日本語", "\x00\x01\x7f", "a" * 300, "  " * 20 + "x", "x\n\n\n\n\ny",
    "def f(x):\n    return x  # <b>\n", "<table><tr></td></tr>", "\u3000\u00a0x", "<unused1><mask>[multimodal]",
]  # fmt: skip


@dataclass(frozen=True)
class Bench:
    llama: Path = Path(sys.executable)  # a Python interpreter that has xllamacpp
    data: Path | None = None  # texts; without them only odd ones are compared
    models: tuple[str, ...] = ("nano=alhena/nano",)  # NAME=FOLDER; NAME:4 or NAME:8 quantizes, NAME:float dequantizes
    hf: tuple[str, ...] = ()  # NAME=FOLDER: exported with --to hf, for transformers (which PYTHON has too)
    golden: bool = True
    lines: int = 2000  # texts whose tokens are compared
    out: Path = Path(__file__).parent / "results" / "export.json"
    worker: Annotated[str, "internal: file with the jobs of a worker"] = ""


def work(path: Path) -> None:
    """A worker with llama.cpp: tokens of the texts, logits after the ids of each job; vectors of an image; or with transformers."""
    for job in json.loads(path.read_text()):
        if "mmproj" in job:
            from llama_vision import soft_tokens

            image = np.load(job["image"])
            np.save(job["file"] + ".npy", soft_tokens(Path(job["file"]), Path(job["mmproj"]), image, job["width"]))
            continue
        if job["architecture"] == "hf":
            np.save(job["file"] + ".npy", transformers_logits(job["file"], job["ids"]))
            continue
        from llama_cpp import LlamaCpp

        model = LlamaCpp(Path(job["file"]), 512, exact=True)
        tokens = [model.tokenize(text) for text in job["texts"]]
        logits = model.feed(job["ids"], 0, every=True)
        np.savez(job["file"] + ".npz", logits=logits, tokens=np.array(json.dumps([tokens, model.version])))


def transformers_logits(folder: str, ids: list[int]) -> np.ndarray:
    """Logits of the reference, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def _vision(folder: Path) -> dict[str, Any]:
    """The tests' Gemma 3 with images, its decoder with a vocabulary that has the marks of an image."""
    import jax

    from alhena.model import model
    from alhena.model.encoders import vision
    from alhena.model.families import open_weights
    from alhena.model.families.export_weights import without_encoders
    from alhena.model.families.gguf_vision import write_mmproj
    from alhena.model.families.gguf_writer import write_decoder
    from alhena.tokens.gguf_vocabulary import imported_metadata
    from alhena.tokens.hf_tokenizer import HfTokenizer
    from alhena.tokens.images import preprocess
    from tests.tokens.small_hf_tokenizer import CONTROLS, small_tokenizer

    params, c = open_weights.read(GOLDEN / "open/gemma3_vision")
    assert c.vision and params.vision
    c = replace(c, decoder=replace(c.decoder, query_pre_attn_scalar=None))
    mmproj, text, image = folder / "mmproj.gguf", folder / "text.gguf", folder / "image.npy"
    write_mmproj(mmproj, params, c)
    tokenizer = HfTokenizer.from_bytes(small_tokenizer(more=("<start_of_image>", "<end_of_image>")), CONTROLS.values())
    decoder = replace(without_encoders(c), vocabulary=tokenizer.size)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.weights(decoder))
    write_decoder(text, zeros, decoder, imported_metadata(tokenizer, {"bos": 2, "eos": 1, "pad": 0}, tokenizer.size))
    pixels = np.random.default_rng(1).integers(0, 256, (c.vision.side * c.vision.patch,) * 2 + (3,), np.uint8)
    np.save(image, pixels)
    patches, positions = preprocess(pixels, c.vision, 2**16)[:2]
    images = np.ones((1, len(patches)), np.int32)
    ours = vision.encode(params.vision, patches[None], positions[None], images, c.vision, "float32")  # type: ignore[arg-type]
    job = {
        "file": str(text),
        "mmproj": str(mmproj),
        "image": str(image),
        "width": c.decoder.width,
        "architecture": "clip",
    }
    return {**job, "vectors": np.asarray(ours)[0], "bytes": mmproj.stat().st_size}


def _hf(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """A folder in Hugging Face's layout."""
    from alhena.model.families.export_weights import exported, write
    from alhena.model.storage.folders import load_model

    params, c = load_model(path)
    out = folder / f"hf-{name}"
    out.mkdir()
    write(out, params, c)
    c, params = exported(c), replace(params, vision=None, audio=None, special=None)
    ids = np.random.default_rng(0).integers(0, c.vocabulary, LENGTH).tolist()
    return {"file": str(out), "architecture": "hf", "ids": ids, "vectors": _logits(params, c, ids), "bytes": 0}


def _logits(params: Any, c: Any, ids: list[int]) -> np.ndarray:
    """Our logits after every id, computed in float32, with embeddings scaled by the exact √width as in llama.cpp."""
    import jax
    from bench_open_weights import _batch

    from alhena.model import model

    c = replace(c, compute_dtype="float32", decoder=replace(c.decoder, embedding_scale=None))
    run = jax.jit(lambda params, batch: model.logits(params, c, model.forward(params, c, batch)[0]))
    return np.asarray(run(params, _batch(ids)), np.float32)


def _golden(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The models of the tests."""
    from alhena.model.families import open_weights
    from alhena.model.families.export_weights import without_encoders
    from alhena.model.families.gguf_writer import write_decoder

    for name in GOLDENS:
        params, c = open_weights.read(GOLDEN / name)
        if "4" not in name:
            # The architectures have the score scale of the published models.
            c = replace(c, decoder=replace(c.decoder, query_pre_attn_scalar=None))
        c, params = without_encoders(c), replace(params, vision=None, audio=None, special=None)
        file = folder / f"{name.replace('/', '-')}.gguf"
        kind = write_decoder(file, params, c, {"tokenizer.ggml.model": "none"})
        ids = np.random.default_rng(0).integers(0, c.vocabulary, 60).tolist()
        yield f"golden {name.removeprefix('open/')}", _job(file, kind, params, c, [], [], ids)


def _job(
    file: Path, kind: str, params: Any, c: Any, texts: list[str], tokens: list[list[int]], ids: list[int]
) -> dict[str, Any]:
    return {
        "file": str(file), "architecture": kind, "texts": texts, "tokens": tokens, "ids": ids,
        "logits": _logits(params, c, ids), "bytes": file.stat().st_size,
    }  # fmt: skip


def _folder(name: str, path: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    """A model folder."""
    import jax

    from alhena.compress.export_gguf import tokenizer_metadata
    from alhena.compress.quantize import quantize_model
    from alhena.model import model
    from alhena.model.families.export_weights import without_encoders
    from alhena.model.families.gguf_writer import write_decoder
    from alhena.model.linear import dense
    from alhena.model.quantized.layout import is_quantized
    from alhena.model.storage.folders import load_model
    from alhena.tokens.encode import Encoder
    from alhena.tokens.encoders import load_encoder

    params, c = load_model(path)
    c, params = without_encoders(c), replace(params, vision=None, audio=None, special=None)
    kind = name.partition(":")[2]
    if kind == "float":
        params = jax.tree.map(lambda w: dense(w) if is_quantized(w) else w, params, is_leaf=is_quantized)
    elif kind:
        params = quantize_model(params, model.weights(c))
    file = folder / f"{name.replace(':', '-')}.gguf"
    architecture = write_decoder(file, params, c, tokenizer_metadata(path, c))
    encoder = load_encoder(path)
    bos = encoder.vocabulary.bos if isinstance(encoder, Encoder) else encoder.settings.controls["bos"]
    tokens = [list(encoder.tokenizer.encode(text)) for text in texts]
    ids = [bos, *[i for text in tokens[-40:] for i in text]][:LENGTH]
    return _job(file, architecture, params, c, texts, tokens, ids)


def compared(job: dict[str, Any]) -> dict[str, Any]:
    """One line of the result."""
    if "vectors" in job:
        ours, theirs = job["vectors"], np.load(job["file"] + ".npy")
        sizes = {"largest_value": float(f"{np.abs(ours).max():.4g}"), "shape": list(ours.shape)}
        return {
            "architecture": job["architecture"],
            **sizes,
            "largest_difference": float(f"{np.abs(ours - theirs).max():.2g}"),
        }
    with np.load(job["file"] + ".npz") as found:
        theirs, (tokens, version) = found["logits"], json.loads(str(found["tokens"]))
    ours = job["logits"]
    difference = np.abs(ours - theirs)
    wrong = [text for text, a, b in zip(job["texts"], job["tokens"], tokens, strict=True) if a != b]
    return {
        "architecture": job["architecture"], "bytes": job["bytes"], "peer": version, "positions": len(ours),
        "largest_logit": round(float(np.abs(ours).max()), 4), "largest_difference": float(f"{difference.max():.2g}"),
        "median_of_positions": float(f"{np.median(difference.max(-1)):.2g}"),
        "same_best": round(float((ours.argmax(-1) == theirs.argmax(-1)).mean()), 4),
        "texts": len(job["texts"]), "texts_of_other_tokens": len(wrong), "examples": wrong[:5],
    }  # fmt: skip


def main(bench: Bench) -> None:
    from bench_open_weights import texts

    lines = [text for text in texts(bench.data, bench.lines) if text] if bench.data else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs = dict(_golden(folder)) if bench.golden else {}
        for entry in bench.models:
            name, _, path = entry.partition("=")
            print(name, flush=True)
            jobs[name] = _folder(name, Path(path), ODD + lines, folder)
        if bench.golden:
            jobs["golden gemma3_vision, mmproj"] = _vision(folder)
        for entry in bench.hf:
            name, _, path = entry.partition("=")
            jobs[f"{name}, --to hf in transformers"] = _hf(name, Path(path), folder)
        given = folder / "jobs.json"
        given.write_text(
            json.dumps(
                [{k: v for k, v in j.items() if k not in ("logits", "tokens", "vectors")} for j in jobs.values()]
            )
        )
        subprocess.run([bench.llama, __file__, "--worker", given], check=True)
        result = {"cores": os.cpu_count(), "models": {name: compared(job) for name, job in jobs.items()}}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    bench.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]))
    else:
        import tyro

        main(tyro.cli(Bench, description=__doc__))
