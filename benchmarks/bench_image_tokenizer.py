"""The image tokenizer at two sizes, the starter's and the family's, on the same images: reconstruction error and use of the codes.

    python benchmarks/bench_image_tokenizer.py [runs/starter]                      on the run's images
    python benchmarks/bench_image_tokenizer.py --images FOLDER --side 64           on your own images (jpg, png; at any depth)

A tenth of the images is held out and measured on. Writes benchmarks/results/image_tokenizer.json (``--out``) and, beside it, a plot
of originals and reconstructions for each size.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from alhena.content import Image
from alhena.documents import read_documents
from alhena.files import read_json, write_json
from alhena.media import decode_image
from alhena.model import image_tokenizer as tokenizer
from alhena.model.config import CODES_STRIDE, ImageTokenizer
from alhena.tokens.images import resize
from alhena.train.components.image_tokenizer import TrainImageTokenizer, measure, plot_reconstructions, train
from recipes import family, starter


@dataclass(frozen=True)
class Bench:
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/starter")  # a run folder
    images: Path | None = None  # a folder of images, used instead of the run's
    steps: int = 800  # training steps of each size
    side: int = 32  # side of a training crop, in pixels
    max_images: int = 4000
    max_side: int = 256  # images of a folder with a longer side are scaled down to it, in pixels
    out: Path = Path(__file__).parent / "results" / "image_tokenizer.json"


def _run_images(bench: Bench) -> list[np.ndarray]:
    """A random sample of the run's images to generate and of its scenes, uint8 [height, width, 3]."""
    images = []
    for document in read_documents(bench.folder / "curated" / "train"):
        for content in document.contents:
            if content.role == "model" or document.source == "scenes":
                images += [decode_image(part.data) for part in content.parts if isinstance(part, Image)]
    return [images[i] for i in np.random.default_rng(0).permutation(len(images))[: bench.max_images]]


def _folder_images(folder: Path, bench: Bench) -> list[np.ndarray]:
    """A random sample of the images of a folder, scaled to multiples of the tokenizer's stride."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = []
    for i in np.random.default_rng(0).permutation(len(files))[: bench.max_images]:
        image = decode_image(files[i].read_bytes())
        scale = min(1.0, bench.max_side / max(image.shape[:2]))
        height, width = (int(n * scale) // CODES_STRIDE * CODES_STRIDE for n in image.shape[:2])
        if min(height, width) >= bench.side:
            images.append(resize(image, height, width))
    return images


def train_and_measure(name: str, c: ImageTokenizer, bench: Bench, images: list[np.ndarray]) -> dict[str, Any]:
    """Trains one size on nine tenths of the images and measures it on those of the rest that share the most frequent shape."""
    held_out, training = images[: len(images) // 10], images[len(images) // 10 :]
    settings = TrainImageTokenizer(steps=bench.steps, side=bench.side)
    if c.width > 128:
        settings = replace(settings, learning_rate=settings.learning_rate / 2)
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        train(training, c, settings, Path(out))
        seconds = time.monotonic() - began
        params, _ = tokenizer.load(Path(out))
    shapes = [image.shape for image in held_out]
    measured = [image for image in held_out if image.shape == max(set(shapes), key=shapes.count)]
    plot_reconstructions(params, c, measured[:12], bench.out.with_name(f"{bench.out.stem}_{name}.png"))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"settings": asdict(c), "parameters": parameters, "seconds": round(seconds), **measure(params, c, measured)}


def main(bench: Bench) -> None:
    images = _folder_images(bench.images, bench) if bench.images else _run_images(bench)
    if len(images) < 20:
        raise SystemExit(f"{bench.images or bench.folder}: {len(images)} images are too few to measure on")
    device = {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__}
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_json(bench.out) if bench.out.exists() else {}
    results |= {"device": device, "steps": bench.steps, "images": len(images), "side": bench.side}
    for name, c in (("starter", starter.run().image_tokenizer), ("family", family.IMAGES)):
        results[name] = train_and_measure(name, c, bench, images)
        print(name, results[name], flush=True)
        write_json(bench.out, results)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
