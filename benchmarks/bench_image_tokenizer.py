"""The image tokenizer at its two sizes, the starter's and the family's, on the same pictures: how well it redraws, how it uses its codes.

    python benchmarks/bench_image_tokenizer.py [runs/starter]                      on the run's own pictures
    python benchmarks/bench_image_tokenizer.py --pictures FOLDER --side 64         on pictures of your own (jpg, png; searched deeply)

A tenth of the pictures is held back and measured on. Writes benchmarks/results/image_tokenizer.json (``--out``) and, beside it, a picture
of originals and reconstructions of each size.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from alhena.content import Image, read_documents
from alhena.files import read_json, write_json
from alhena.media import decode_image
from alhena.model import image_tokenizer as tokenizer
from alhena.model.config import CODES_STRIDE, ImageTokenizer
from alhena.tokens.images import resize
from alhena.train.image_tokenizer import TrainImageTokenizer, measure, plot_reconstructions, train
from recipes import family, starter


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")
    pictures: Path | None = None  # instead of the run's
    steps: int = 800  # of both sizes
    side: int = 32  # of a crop, in pixels
    most: int = 4000  # pictures
    longest: int = 256  # pixels of a picture's longer side
    out: Path = Path(__file__).parent / "results" / "image_tokenizer.json"


def _of_run(folder: Path, most: int) -> list[np.ndarray]:
    found = []
    for document in read_documents(folder / "curated" / "train"):
        for content in document.contents:
            if content.role == "model" or document.source == "scenes":
                found += [decode_image(part.data) for part in content.parts if isinstance(part, Image)]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:most]]


def _of_folder(folder: Path, bench: Bench) -> list[np.ndarray]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found = []
    for i in np.random.default_rng(0).permutation(len(files))[: bench.most]:
        image = decode_image(files[i].read_bytes())
        scale = min(1.0, bench.longest / max(image.shape[:2]))
        height, width = (int(n * scale) // CODES_STRIDE * CODES_STRIDE for n in image.shape[:2])
        if min(height, width) >= bench.side:
            found.append(resize(image, height, width))
    return found


def of_size(name: str, c: ImageTokenizer, bench: Bench, images: list[np.ndarray]) -> dict:
    held, rest = images[: len(images) // 10], images[len(images) // 10 :]
    settings = TrainImageTokenizer(steps=bench.steps, side=bench.side)
    if c.width > 128:
        settings = replace(settings, learning_rate=settings.learning_rate / 2)
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        train(rest, c, settings, Path(out))
        seconds = time.monotonic() - began
        params, _ = tokenizer.load(Path(out))
    shapes = [image.shape for image in held]
    common = [image for image in held if image.shape == max(set(shapes), key=shapes.count)]
    plot_reconstructions(params, c, common[:12], bench.out.with_name(f"{bench.out.stem}_{name}.png"))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"settings": asdict(c), "parameters": parameters, "seconds": round(seconds), **measure(params, c, common)}


def main(bench: Bench) -> None:
    images = _of_folder(bench.pictures, bench) if bench.pictures else _of_run(bench.folder, bench.most)
    if len(images) < 20:
        raise SystemExit(f"{bench.pictures or bench.folder}: {len(images)} pictures are too few to measure on")
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    kept = read_json(bench.out) if bench.out.exists() else {}
    kept |= {"device": device, "steps": bench.steps, "pictures": len(images), "crop": bench.side}
    for name, c in (("starter", starter.run().image_tokenizer), ("family", family.IMAGES)):
        kept[name] = of_size(name, c, bench, images)
        print(name, kept[name], flush=True)
        write_json(bench.out, kept)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
