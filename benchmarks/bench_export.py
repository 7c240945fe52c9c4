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
# Of a job: what its worker does not need.
ARRAYS = ("logits", "exact", "tokens", "vectors")
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
            from llama_encoders import soft_tokens

            medium = np.load(job["medium"])
            np.save(job["file"] + ".npy", soft_tokens(Path(job["file"]), Path(job["mmproj"]), medium, job["width"]))
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


# The tests' models with images: the marks of an image, and its sides in soft tokens (None: those of the encoder), 70 of them: a budget of Gemma 4.
VISIONS = {
    "gemma3_vision": (("<start_of_image>", "<end_of_image>"), None),
    "gemma4_small": (("<|image>", "<image|>"), (7, 10)),
    "gemma4_large": (("<|image>", "<image|>"), (10, 7)),
}


def _text_model(path: Path, marks: tuple[str, ...], width: int) -> None:
    """A decoder of zeros, whose vocabulary has the marks around an image or audio."""
    import jax

    from alhena.model import config, model
    from alhena.model.families.gguf.writer import write_decoder
    from alhena.tokens.text.gguf_vocabulary import imported_metadata
    from alhena.tokens.text.hf_tokenizer import HfTokenizer
    from tests.tokens.small_hf_tokenizer import CONTROLS, small_tokenizer

    tokenizer = HfTokenizer.from_bytes(small_tokenizer(more=marks), CONTROLS.values())
    c = config.Model(tokenizer.size, -1, -1, config.Decoder(width, 1, 2, 16, 32), None, None)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.weights(c))
    write_decoder(path, zeros, c, imported_metadata(tokenizer, {"bos": 2, "eos": 1, "pad": 0}, tokenizer.size))


def _vision(name: str, folder: Path) -> dict[str, Any]:
    """A model of the tests with images, beside a decoder with a vocabulary that has the marks of an image."""
    from alhena.model import config
    from alhena.model.encoders import gemma_vision, vision
    from alhena.model.families import open_weights
    from alhena.tokens.images import preprocess

    params, c = open_weights.read(GOLDEN / "open" / name)
    v, (marks, sides) = c.vision, VISIONS[name]
    assert v and not isinstance(v, config.UnifiedVision)
    size = (v.side * v.patch,) * 2 if sides is None else tuple(side * v.pixels_per_token for side in sides)
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    patches, positions = preprocess(pixels, v, sides[0] * sides[1] if sides else 2**16)[:2]
    images = np.ones((1, len(patches)), np.int32)
    encode = gemma_vision.encode if isinstance(v, config.GemmaVision) else vision.encode
    ours = encode(params.vision, patches[None], positions[None], images, v, "float32")  # type: ignore[arg-type]
    return _encoder_job(folder, name, (params, c), marks, pixels, np.asarray(ours)[0])


def _audio(folder: Path) -> dict[str, Any]:
    """Gemma 4's audio encoder with the numbers that llama.cpp fixes, all others small, and random weights: 1.6 s of noise."""
    import jax

    from alhena.model import config, model
    from alhena.model.encoders import usm
    from alhena.tokens.audio_features import features

    audio = config.Usm(
        width=64, layers=3, heads=2, hidden=256, kernel=5, mels=128, chunk=3000, stack=1, channels=(128, 32), block=12,
        left=12, variant="gemma4", clipped=True, output=96,
    )  # fmt: skip
    decoder = config.Decoder(32, 1, 2, 16, 32, value_norm=True, query_pre_attn_scalar=1.0, layer_scalar=True)
    c = config.Model(64, -1, 1, decoder, None, audio, replace_placeholders=True)
    rng = np.random.default_rng(2)

    def random(s: Any) -> np.ndarray:
        if s.shape[-1:] == (4,):
            return np.broadcast_to(np.array([-3, 3, -6, 6], np.float32), s.shape)
        size = 0.3 if len(s.shape) < 3 and s.contracted is None else s.shape[-2] ** -0.5
        return rng.standard_normal(s.shape, np.float32) * np.float32(size)

    params = jax.tree.map(random, model.weights(c))
    samples = 0.1 * rng.standard_normal(25_600, np.float32)
    frames, lengths = features(samples, audio)
    ours, valid = usm.encode(params.audio, frames[None], lengths[None], audio, "float32")
    marks = ("<|audio>", "<audio|>")
    return _encoder_job(folder, "audio", (params, c), marks, samples, np.asarray(ours)[np.asarray(valid)])


def _encoder_job(
    folder: Path, name: str, of_model: tuple[Any, Any], marks: tuple[str, ...], medium: np.ndarray, ours: np.ndarray
) -> dict[str, Any]:
    """What llama.cpp does with an image or audio, and our soft tokens of it."""
    from alhena.model.families.gguf.mmproj import write_mmproj

    params, c = of_model
    mmproj, text, path = (folder / f"{name}-{file}" for file in ("mmproj.gguf", "text.gguf", "medium.npy"))
    write_mmproj(mmproj, params, c)
    _text_model(text, marks, c.decoder.width)
    np.save(path, medium)
    job = {"file": str(text), "mmproj": str(mmproj), "medium": str(path), "width": c.decoder.width}
    return {**job, "architecture": "clip", "vectors": ours, "bytes": mmproj.stat().st_size}


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


def _gemma3n() -> tuple[Any, Any]:
    """A Gemma 3n of the sizes that llama.cpp fixes, all others small, with random weights none of which is neutral."""
    import jax

    from alhena.model import config, model
    from alhena.model.spec import named

    decoder = config.Decoder(
        width=64, layers=24, heads=2, head_dim=32, hidden=2048, window=16, global_every=5, local_rope_base=1e4, rope_base=1e6,
        query_pre_attn_scalar=1.0, final_logit_softcap=30.0, value_norm=True, kv_sharing_layers=4,
        per_layer_inputs=config.PerLayerInputs(256, 80), altup=config.AltUp(4, 64, 10, 0.95),
    )  # fmt: skip
    c = config.Model(96, -1, -1, decoder, None, None)
    rng = np.random.default_rng(0)

    def random(name: str, s: Any) -> np.ndarray:
        size = 0.3 if s.contracted is None else s.shape[s.contracted] ** -0.5
        # Scores of a usual size: those of random keys with a factor of one are so large that every rounding shows.
        mean = -0.6 if name.endswith(("query_norm", "key_norm")) else 0
        return mean + rng.standard_normal(s.shape, np.float32) * np.float32(size)

    specs = model.weights(c)
    return jax.tree.unflatten(jax.tree.structure(specs), [random(*item) for item in named(specs).items()]), c


def _golden(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The models of the tests."""
    from alhena.model.families import open_weights
    from alhena.model.families.export_weights import without_encoders
    from alhena.model.families.gguf.writer import write_decoder

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
    params, c = _gemma3n()
    kind = write_decoder(folder / "gemma3n.gguf", params, c, {"tokenizer.ggml.model": "none"})
    # Ids beyond the table of per-layer inputs too.
    ids = np.random.default_rng(0).integers(0, c.vocabulary, 60).tolist()
    yield "random gemma3n", _job(folder / "gemma3n.gguf", kind, params, c, [], [], ids)


def _job(
    file: Path, kind: str, params: Any, c: Any, texts: list[str], tokens: list[list[int]], ids: list[int]
) -> dict[str, Any]:
    return {
        "file": str(file), "architecture": kind, "texts": texts, "tokens": tokens, "ids": ids,
        "logits": _logits(params, c, ids), "bytes": file.stat().st_size,
    }  # fmt: skip


def _folder(name: str, path: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    """A model folder."""
    from alhena.compress.export_gguf import tokenizer_metadata
    from alhena.compress.quantize import quantize_model
    from alhena.model import model
    from alhena.model.families.export_weights import without_encoders
    from alhena.model.families.gguf.writer import write_decoder
    from alhena.model.storage.folders import is_quantized, load_model
    from alhena.tokens.encode import Encoder
    from alhena.tokens.encoders import load_encoder

    params, c = load_model(path)
    c, params = without_encoders(c), replace(params, vision=None, audio=None, special=None)
    kind = name.partition(":")[2]
    if kind == "float":
        params = _dequantized(params)
    elif kind:
        params = quantize_model(params, model.weights(c))
    file = folder / f"{name.replace(':', '-')}.gguf"
    architecture = write_decoder(file, params, c, tokenizer_metadata(path, c))
    encoder = load_encoder(path)
    bos = encoder.vocabulary.bos if isinstance(encoder, Encoder) else encoder.settings.controls["bos"]
    tokens = [list(encoder.tokenizer.encode(text)) for text in texts]
    ids = [bos, *[i for text in tokens[-40:] for i in text]][:LENGTH]
    job = _job(file, architecture, params, c, texts, tokens, ids)
    job["exact"] = _logits(_dequantized(params), c, ids) if is_quantized(path) or kind in ("4", "8") else job["logits"]
    return job


def _dequantized(params: Any) -> Any:
    """The same weights as floats: their inputs are not rounded."""
    import jax

    from alhena.model.linear import dense
    from alhena.model.quantized.layout import is_quantized

    return jax.tree.map(lambda w: dense(w) if is_quantized(w) else w, params, is_leaf=is_quantized)


def _differences(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Of the logits of every position."""
    difference = np.abs(a - b)
    return {
        "largest_difference": float(f"{difference.max():.2g}"),
        "median_of_positions": float(f"{np.median(difference.max(-1)):.2g}"),
        "same_best": round(float((a.argmax(-1) == b.argmax(-1)).mean()), 4),
    }


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
    wrong = [text for text, a, b in zip(job["texts"], job["tokens"], tokens, strict=True) if a != b]
    return {
        "architecture": job["architecture"], "bytes": job["bytes"], "peer": version, "positions": len(ours),
        "largest_logit": round(float(np.abs(ours).max()), 4), **_differences(ours, theirs),
        "texts": len(job["texts"]), "texts_of_other_tokens": len(wrong), "examples": wrong[:5],
        **({} if job.get("exact") is None or job["exact"] is ours else {
            "ours_beside_exact_activations": _differences(ours, job["exact"]),
            "theirs_beside_exact_activations": _differences(theirs, job["exact"]),
        }),
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
            jobs |= {f"golden {name}, mmproj": _vision(name, folder) for name in VISIONS}
            jobs["random gemma4 audio, mmproj"] = _audio(folder)
        for entry in bench.hf:
            name, _, path = entry.partition("=")
            jobs[f"{name}, --to hf in transformers"] = _hf(name, Path(path), folder)
        given = folder / "jobs.json"
        given.write_text(json.dumps([{k: v for k, v in j.items() if k not in ARRAYS} for j in jobs.values()]))
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
