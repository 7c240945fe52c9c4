"""Peak memory of the tokenize stage on a corpus and on one ten times as large: it must not grow with the corpus.

    python benchmarks/bench_memory.py --documents 66600      the size of the starter, and ten times that

Each size has a process of its own, which samples images and texts, trains the text tokenizer, and encodes the split. Recorded are the peak
resident memory of that process and of its largest worker, in MiB. The corpus is synthetic, with the starter's proportions of media: images
with questions, audio, running text, images to generate. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from alhena.content import Audio, Content, Document, Image, Part, Text
from alhena.documents import write_documents
from alhena.files import write_json
from alhena.media import encode_audio, encode_png

WORDS = "circle square star red blue green above below seven forty hears sees reads writes".split()
# Documents in one Parquet file.
DOCUMENTS_PER_FILE = 10_000


@dataclass(frozen=True)
class Bench:
    documents: int = 6_660  # of the smaller corpus: a tenth of the starter's
    factor: int = 10
    out: Path = Path(__file__).parent / "results" / "memory.json"
    worker: Path | None = None  # internal: the folder of a measured process


def _image(rng: np.random.Generator, height: int, width: int) -> Image:
    """Random blocks of 8 × 8 pixels."""
    cells = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image(encode_png(cells.repeat(8, 0).repeat(8, 1)))


def _audio(rng: np.random.Generator) -> Audio:
    samples = int(16_000 * rng.uniform(0.5, 2.5))
    return Audio(encode_audio(0.2 * np.sin(np.arange(samples) * rng.uniform(0.05, 0.5)).astype(np.float32)))


def document(number: int) -> Document:
    """Six of ten documents ask about an image and three about audio; the tenth is text or asks to generate an image, by turns."""
    rng = np.random.default_rng(number)
    words = " ".join(rng.choice(WORDS, 6).tolist())
    if number % 10 == 9:
        if number % 20 == 9:
            text = " ".join(rng.choice(WORDS, 150).tolist()) + f" {number}"
            return Document((Content("document", (Text(text),)),), str(number), "text")
        contents = Content("user", (Text(f"Draw {words}."),)), Content("model", (_image(rng, 32, 32),))
        return Document(contents, str(number), "drawing")
    source = "speech" if number % 10 >= 6 else f"scenes{number % 10}"
    medium: Part = _audio(rng) if source == "speech" else _image(rng, 64, 96)
    contents = Content("user", (medium, Text("What is it?"))), Content("model", (Text(words),))
    return Document(contents, str(number), source)


def make_corpus(folder: Path, documents: int) -> None:
    for start in range(0, documents, DOCUMENTS_PER_FILE):
        part: Iterator[Document] = map(document, range(start, min(start + DOCUMENTS_PER_FILE, documents)))
        write_documents(folder / f"part-{start // DOCUMENTS_PER_FILE:05}.parquet", part)


def tokenize(folder: Path) -> None:
    """The work of the stage, with an image tokenizer of random weights; prints counts as JSON."""
    import jax

    from alhena.model import image_tokenizer
    from alhena.tokens.encode import Encoder
    from alhena.tokens.examples import tokenize
    from alhena.tokens.vocabulary import Vocabulary
    from recipes.starter import run as starter

    run, data, tokenizers = starter(), folder / "data", folder / "tokens"
    generated, scenes = tokenize.sample_images(data)
    params, c = image_tokenizer.init(jax.random.key(0), run.image_tokenizer), run.image_tokenizer
    text = tokenize.train_text_tokenizer(data, run.text_vocabulary_size)
    vocabulary = Vocabulary(text.size, c.num_codes)
    Encoder(text, vocabulary, run.vision, run.audio, run.budget).save(tokenizers)
    how = tokenize.Encoding(tokenizers, run.pretrain.shape.tokens, condition_dropout=run.condition_dropout)
    facts = tokenize.encode_split(data, folder / "out", how, partial(image_tokenizer.encode_images, params, c))
    encoded = sum(file.stat().st_size for file in (folder / "out").glob("*.arrow"))
    examples = sum(counts["examples"] for counts in facts["sources"].values())
    print(json.dumps({"examples": examples, "sampled_images": len(generated) + len(scenes), "encoded_bytes": encoded}))


def _peak(process: Path) -> int:
    """Peak resident memory of a process so far, in MiB; 0 when it has ended."""
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0
    return max([int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")], default=0)


def _session(leader: int) -> list[Path]:
    """The processes of a session except its leader: workers, and the fork server that starts them."""
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and stat.parent.name != str(leader):
            processes.append(stat.parent)
    return processes


def measure(documents: int) -> dict[str, int]:
    """Makes a corpus of that size, tokenizes it in a process of its own, and samples its memory."""
    with tempfile.TemporaryDirectory() as scratch:
        make_corpus(Path(scratch) / "data", documents)
        size = sum(file.stat().st_size for file in (Path(scratch) / "data").glob("*.parquet"))
        command, began = [sys.executable, __file__, "--worker", scratch], time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        peak = workers = 0
        while process.poll() is None:
            peak = max(peak, _peak(Path(f"/proc/{process.pid}")))
            workers = max([workers, *map(_peak, _session(process.pid))])
            time.sleep(0.5)
        if process.returncode or process.stdout is None:
            raise ValueError(f"the process of {documents} documents ended with {process.returncode}")
        facts = json.loads(process.stdout.read().splitlines()[-1])
    seconds = round(time.monotonic() - began)
    peaks = {"process_mib": peak, "largest_worker_mib": workers, "seconds": seconds}
    return {"documents": documents, "corpus_bytes": size, **peaks, **facts}


def main(bench: Bench) -> None:
    if bench.worker:
        tokenize(bench.worker)
        return
    sizes = [measure(bench.documents * factor) for factor in (1, bench.factor)]
    for size in sizes:
        print(size)
    growth = sizes[1]["process_mib"] / sizes[0]["process_mib"]
    write_json(bench.out, {"sizes": sizes, "growth": round(growth, 3)})


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
