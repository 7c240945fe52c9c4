"""Tuning of a model folder on encoded examples: all of its weights, or adapters beside them; the new model folder.

models/gemma + examples ─► models/mine: the same files with other weights, or with adapters (PEFT's layout) in place of weights
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alhena.align import sft
from alhena.compress.distill import Distill, distillation
from alhena.files import SOURCE, copy_atomically, plain, seal_folder
from alhena.model import config, image_tokenizer, lora, model, spec
from alhena.model.families import peft
from alhena.model.storage import folders
from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import WEIGHTS, read_config, save_model, write_config
from alhena.progress import progress_bar
from alhena.stages import CONSOLE
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import encoder_files, is_own, load_encoder
from alhena.tokens.examples import tokenize
from alhena.tokens.examples.loader import left_out
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples
from alhena.train.mixture import Training, open_examples
from alhena.train.monitoring import compare
from alhena.train.step import Adapted, Taught
from alhena.train.trainer import Folders, train


def encode(curated: Path, out: Path, how: tokenize.Encoding, title: str) -> dict[str, Any]:
    """Encodes one split under a progress bar; returns the counts, and prints what was dropped with its reason."""
    encode_images = None
    if is_own(how.tokenizers):
        encode_images = partial(image_tokenizer.encode_images, *image_tokenizer.load(how.tokenizers))
    with progress_bar(CONSOLE) as progress:
        bar = progress.add_task(f"encode {title}", total=tokenize.count_documents(curated))
        facts = tokenize.encode_split(curated, out, how, encode_images, lambda n: progress.update(bar, advance=n))
    for reason, count in facts["dropped"].items():
        CONSOLE.print(f"dropped {count:,} of {title}: {reason}", style="yellow", markup=False)
    for note, count in facts["used_in_part"].items():
        CONSOLE.print(f"used in part {count:,} of {title}: {note}", style="yellow", markup=False)
    return facts


def _mixed(examples: Mapping[str, Examples], t: Training) -> dict[str, Examples]:
    """The examples that a training reads: those of the sources in its phases."""
    return {name: examples[name] for name in examples if any(name in phase.weights for phase in t.phases)}


def report_left_out(examples: Mapping[str, Examples], t: Training) -> dict[str, dict[str, int]]:
    """Prints and returns how many examples of a training do not fit into one of its sequences, by source and reason."""
    sources = _mixed(examples, t)
    counts = left_out(sources, t.shape)
    for name, reasons in counts.items():
        for reason, count in reasons.items():
            CONSOLE.print(f"left out {count:,} of {len(sources[name]):,} {name}: {reason}", style="yellow")
    return counts


def write_model_folder(params: model.Params, c: config.Model, source: Path, out: Path, facts: dict[str, Any]) -> None:
    """Writes a self-contained model folder: weights, configuration, and the other files of the folder ``source``."""
    files = _copy_files(source, out)
    save_model(out, params, c, facts)
    seal_folder(out, (*files, WEIGHTS, "model.json"))


def _copy_files(folder: Path, out: Path) -> tuple[str, ...]:
    """Copies tokenizers, and what an export writes beside the weights; returns their names. Weights alone have no tokenizers."""
    needed = encoder_files(folder)
    names = [*needed] if any((folder / name).exists() for name in needed) else []
    names += [f"{SOURCE}/{path.name}" for path in sorted((folder / SOURCE).glob("*"))]
    for name in names:
        copy_atomically(folder / name, out / name)
    return tuple(names)


def write_adapter_folder(
    adapters: lora.Adapters, c: config.Model, base: Path, out: Path, facts: dict[str, Any]
) -> None:
    """Writes a model folder of adapters beside the weights of the folder ``base``, which must be next to it."""
    files = _copy_files(base, out)
    peft.write(out, adapters, c, f"../{base.name}")
    write_config(out, c, {**facts, "adapter_of": base.name, "adapter_of_sha256": folders.weights_digest(base)})
    seal_folder(out, (*files, peft.SETTINGS, peft.WEIGHTS, "model.json"))


def _tuned(
    base: Path, training: Training, where: Folders, title: str, options: sft.LoraOptions | None, distill: Distill | None
) -> tuple[Any, config.Model]:
    """The trained weights, in the dtypes of the base, or the trained adapters; and the configuration."""
    params, c = load_model(base)
    objective = None if distill is None else distillation(distill, base, c)

    def run(start: model.Params | Adapted) -> Any:
        taught = start if objective is None else Taught(start, objective)
        return train(taught, trained_config(base, c), training, where, title)

    if options is not None:
        adapters = lora.weights(model.weights(c), options.rank, options.scale)
        adapters = spec.init(jax.random.key(training.seed), adapters)
        return run(Adapted(params, adapters)), c
    dtypes = jax.tree.map(lambda w: w.dtype, params)
    # Small updates vanish in weights of 16 bits: training has them in 32.
    params = run(jax.tree.map(lambda w: w.astype(jnp.float32), params))
    return jax.tree.map(lambda w, dtype: w.astype(dtype), params, dtypes), c


def trained_config(base: Path, c: config.Model) -> config.Model:
    """The configuration during training: that of an imported model recomputes activations in the backward pass.

    A loop over its layers would also save the weights of each: those of 16 bits are sliced inside it (alhena/model/transformer/stacks.py).
    """
    return c if is_own(base) else replace(c, decoder=replace(c.decoder, remat=True))


def tune_on(
    base: Path, examples: Path, work: Path, out: Path, t: sft.Tune, distill: Distill | None = None
) -> dict[str, Any]:
    """Tunes the model of folder ``base`` on encoded examples, with a teacher or without.

    Checkpoints are in ``work``, the new model is in ``out``.
    """
    encoder = load_encoder(base)
    ignored = encoder.budget.question_weight if isinstance(encoder, Encoder) else 0.0
    training = sft.training(t, examples, ignored)
    opened = open_examples(examples)
    missing = report_left_out(opened, training)
    trained, c = _tuned(base, training, Folders(examples, work), f"tune {out.name}", t.lora, distill)
    facts = read_config(base)[1] | {"name": out.name, "tuned_steps": t.steps}
    write = write_model_folder if t.lora is None else write_adapter_folder
    write(trained, c, base, out, facts)
    compare.plot_losses(compare.find_runs([work]), work / compare.PLOT)
    epochs = _count_epochs(_mixed(opened, training).values(), training.shape, t.steps)
    return {"tuned_steps": t.steps, **epochs, "shape": plain(training.shape), "left_out": missing}


def _count_epochs(sources: Iterable[Examples], shape: BatchShape, steps: int) -> dict[str, Any]:
    """How many examples, or windows of long running text, fit into a sequence, and about how often training reads each.

    The scarcest of a sequence's budgets (tokens, patches, audio chunks) limits how many examples it holds.
    """
    budgets = np.array([*shape.budgets.values()])
    # A window of running text has at most the tokens of a sequence.
    fitting = np.minimum(np.concatenate([source.sizes()[shape.fitting(source)[:, 0]] for source in sources]), budgets)
    mean = fitting.mean(0) if len(fitting) else budgets
    per_sequence = (budgets[mean > 0] / mean[mean > 0]).min()
    epochs = float(steps * shape.batch_size * per_sequence / max(len(fitting), 1))
    return {"examples": len(fitting), "epochs": round(epochs, 1)}
