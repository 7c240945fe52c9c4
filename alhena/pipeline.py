"""The journey, stage by stage: each reads the artifact of the one before it, writes its own, and is not repeated when it is whole.

    corpus → curate → tokenize (→ listen) → pretrain → tune → compress → evaluate

A stage's fingerprint is made of its settings and of the fingerprint before it, so a changed recipe repeats just what it must.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alhena.align import sft as tuning
from alhena.compress.quantize import quantize_model
from alhena.corpus import starter
from alhena.corpus.curate import curate
from alhena.files import content_fingerprint, copy_atomically, fingerprint, plain, seal_folder, write_json
from alhena.model import config, image_tokenizer, model, sharding
from alhena.model.weights import load_model, read_config, read_tree, save_model, write_tree
from alhena.progress import progress_bar
from alhena.recipe import Recipe
from alhena.scaling import ladder
from alhena.scaling.laws import ScalingLaw
from alhena.stages import CONSOLE, Stage, check_inputs, fingerprint_of, finish_stage, run_stage, start_stage
from alhena.tokens import tokenize, tokenizer
from alhena.tokens.encode import Encoder
from alhena.tokens.loader import BatchShape, left_out
from alhena.tokens.store import Examples
from alhena.tokens.vocabulary import Vocabulary
from alhena.train import compare
from alhena.train import image_tokenizer as image_training
from alhena.train.best_rq import pretrain_audio_encoder
from alhena.train.mixture import open_examples
from alhena.train.replay import Replayed, replay
from alhena.train.trainer import Folders, train
from alhena.train.validation import validate

BASE, ASSISTANT, NANO = "base", "assistant", "nano"
AUDIO_ENCODER = "listen"
_TOKENIZER_FILES = ("text.model", "vocabulary.json", "image_tokenizer.json", "image_tokenizer.safetensors")
_OWN_RAW = "documents of your own need a recipe with corpus=None (docs/your-data.md); or choose another run folder"


def make_corpus(run: Recipe, folder: Path) -> None:
    raw, corpus = folder / "raw", run.corpus
    if corpus is None:
        if not raw.is_dir():
            raise ValueError(
                f"{run.name} is trained on documents of your own: put them under {raw} (docs/your-data.md)"
            )
        return
    stage = Stage("starter corpus", raw, fingerprint("raw", corpus), advice=_OWN_RAW)
    run_stage(stage, lambda: {"documents": starter.build(raw, corpus)})


def make_curated(run: Recipe, folder: Path) -> None:
    raw, out = folder / "raw", folder / "curated"
    if run.corpus is None:
        make_corpus(run, folder)
    origin = content_fingerprint(raw) if run.corpus is None else fingerprint_of(raw)
    reads = () if run.corpus is None else (raw,)
    stage = Stage("curate", out, fingerprint(origin, run.curate), reads)
    run_stage(stage, lambda: {"report": curate(raw, out, run.curate)})


def _learn_image_tokenizer(run: Recipe, curated: Path, out: Path) -> dict[str, Any]:
    pictures, scenes = tokenize.sample_images(curated / "train")
    measured = image_training.train(pictures + scenes, run.image_tokenizer, run.image_tokenizer_training, out)
    params, c = image_tokenizer.load(out)
    square = [p for p in pictures if p.shape[0] == p.shape[1]][:14]
    image_training.plot_reconstructions(params, c, square, out / "reconstructions.png")
    return measured


def make_tokens(run: Recipe, folder: Path) -> None:
    """Text pieces, image tokenizer, and the encoded splits."""
    curated, out = folder / "curated", folder / "tokens"
    settings = (
        run.text_vocabulary_size,
        run.image_tokenizer,
        run.image_tokenizer_training,
        run.vision,
        run.audio,
        run.budget,
        run.condition_dropout,
    )
    images, print_ = folder / "image_tokenizer", fingerprint(fingerprint_of(curated), *settings, run.pretrain.shape)
    image_print = fingerprint(fingerprint_of(curated), run.image_tokenizer, run.image_tokenizer_training)
    learning = Stage("image tokenizer", images, image_print, (curated,))
    run_stage(learning, lambda: _learn_image_tokenizer(run, curated, images))

    def work() -> dict[str, Any]:
        with CONSOLE.status("learning text pieces from the whole corpus"):
            pieces = tokenize.train_text_tokenizer(curated / "train", run.text_vocabulary_size)
        sample: dict[str, list[str]] = {}
        for language, some in tokenize.sample_texts(curated / "train", 500_000, seed=1):
            sample.setdefault(language, []).append(some)
        rates = tokenizer.coverage(pieces, sample)
        write_json(out / "coverage.json", rates)
        tokenize.plot_coverage(out / "coverage.png", rates)
        Encoder(pieces, Vocabulary(pieces.size, run.image_tokenizer.num_codes), run.vision, run.audio, run.budget).save(
            out
        )
        for name in _TOKENIZER_FILES[2:]:
            copy_atomically(images / name, out / name)
        how = tokenize.Encoding(out, run.pretrain.shape.tokens, condition_dropout=run.condition_dropout)
        return {s: encode(curated / s, out / s, how, s) for s in ("train", "validation")}

    run_stage(Stage("tokenize", out, print_, (curated, images)), work)


def encode(curated: Path, out: Path, how: tokenize.Encoding, title: str) -> dict[str, Any]:
    """Encodes one split under a progress bar; what is dropped is said with its reason."""
    params, c = image_tokenizer.load(how.tokenizers)
    draw = partial(image_tokenizer.encode_images, params, c)
    with progress_bar(CONSOLE) as progress:
        bar = progress.add_task(f"encode {title}", total=tokenize.count_documents(curated))
        facts = tokenize.encode_split(curated, out, how, draw, lambda done: progress.update(bar, advance=done))
    for reason, count in facts["dropped"].items():
        CONSOLE.print(f"dropped {count:,} of {title}: {reason}", style="yellow", markup=False)
    for note, count in facts["used_in_part"].items():
        CONSOLE.print(f"used in part {count:,} of {title}: {note}", style="yellow", markup=False)
    return facts


def say_left_out(sources: Mapping[str, Examples], shape: BatchShape) -> dict[str, dict[str, int]]:
    """Says which examples fit no row of a training, and returns their numbers by source and reason."""
    counts = left_out(sources, shape)
    for name, reasons in counts.items():
        for reason, count in reasons.items():
            CONSOLE.print(f"left out {count:,} of {len(sources[name]):,} {name}: {reason}", style="yellow")
    return counts


def write_model_folder(params: model.Params, c: config.Model, tokens: Path, out: Path, facts: dict[str, Any]) -> None:
    """A model folder, complete in itself: weights, configuration, tokenizers."""
    for name in _TOKENIZER_FILES:
        copy_atomically(tokens / name, out / name)
    save_model(out, params, c, facts)
    seal_folder(out, (*_TOKENIZER_FILES, "weights.safetensors", "model.json"))


def _initial_model(run: Recipe, folder: Path) -> tuple[model.Params, config.Model]:
    """The model before its first step."""
    c = run.model(Encoder.load(folder / "tokens").vocabulary)
    with sharding.use_mesh(run.pretrain.mesh):
        params = model.init(jax.random.key(run.pretrain.seed), c)
        if run.audio_pretraining is None:
            return params, c
        return replace(params, audio=read_tree(folder / AUDIO_ENCODER / "audio.safetensors", model.weights(c).audio)), c


def pretrain_audio_encoder_stage(run: Recipe, folder: Path) -> None:
    """The audio encoder, taught by sound alone, if the recipe says so."""
    tokens, out, t = folder / "tokens", folder / AUDIO_ENCODER, run.audio_pretraining
    if t is None:
        return

    def work() -> dict[str, Any]:
        c = run.model(Encoder.load(tokens).vocabulary)
        params = model.init(jax.random.key(run.pretrain.seed), c)
        assert c.audio is not None and params.audio is not None
        ears, facts = pretrain_audio_encoder(params.audio, c.audio, t, open_examples(tokens / "train"), out)
        write_tree(out / "audio.safetensors", ears)
        return facts

    run_stage(Stage("listen", out, fingerprint(fingerprint_of(tokens), t, run.audio), (tokens,)), work)


def replay_base(run: Recipe, folder: Path, step: int) -> Replayed:
    """Pre-training up to ``step`` done again from a kept checkpoint, compared with what was recorded."""
    params, c = _initial_model(run, folder)
    return replay(params, c, run.pretrain, folder / "tokens" / "train", folder / "pretrain", step)


def fit_scaling(run: Recipe, folder: Path, budgets: Sequence[float], factors: Sequence[float]) -> ScalingLaw:
    """A ladder of the run's model, smaller, on the run's tokens; rungs that are done are kept while tokens and settings are the same."""
    tokens, out, t = folder / "tokens", folder / "scaling", run.pretrain
    check_inputs(tokens)
    c = run.model(Encoder.load(tokens).vocabulary)
    # The batch size is in the name of a rung's folder, the number of steps follows from its budget.
    mixtures = [(round(phase.steps / t.steps, 3), phase.weights) for phase in t.phases]
    settings = (mixtures, replace(t.shape, batch_size=0), t.optimizer, t.seed, t.ignored_loss_weight)
    stage = Stage("scaling ladder", out, fingerprint(fingerprint_of(tokens), c, *settings))
    start_stage(stage)
    folders = Folders(tokens / "train", out, tokens / "validation")
    rungs = ladder.train_ladder(c, t, folders, ladder.Grid(budgets, factors))
    law = ladder.fit_ladder(rungs, out)
    finish_stage(stage, {"rungs": len(rungs)})
    return law


def make_base(run: Recipe, folder: Path) -> None:
    tokens, out = folder / "tokens", folder / "pretrain"
    folders = Folders(tokens / "train", out, tokens / "validation")

    def work() -> dict[str, Any]:
        params, c = _initial_model(run, folder)
        facts = {
            "parameters": model.count(params),
            "tokens_seen": run.pretrain.steps * run.pretrain.shape.batch_size * run.pretrain.shape.tokens,
        }
        missing = say_left_out(open_examples(tokens / "train"), run.pretrain.shape)
        CONSOLE.print(f"{facts['parameters']:,} parameters, {run.pretrain.steps:,} steps of {run.pretrain.shape}")
        params = train(params, c, run.pretrain, folders, f"pretrain {run.name}")
        params = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params) if several else params
        if jax.process_index() == 0:
            write_model_folder(params, c, tokens, folder / "models" / BASE, {"name": BASE, **facts})
            compare.plot_losses(compare.find_runs([out]), out / compare.PLOT)
        return {**facts, "left_out": missing}

    several = jax.process_count() > 1
    # On which chips it is trained, and how often it is copied, is not what is trained: a run may go on with fewer.
    settings = replace(run.pretrain, mesh=None, memory_checkpoint_every=0)
    print_ = fingerprint(fingerprint_of(tokens), settings, run.decoder, run.compute_dtype, run.audio_pretraining)
    reads = (tokens,) if run.audio_pretraining is None else (tokens, folder / AUDIO_ENCODER)
    run_stage(Stage("pretrain", out, print_, reads, (folder / "models" / BASE,)), work)


def make_assistant(run: Recipe, folder: Path) -> None:
    models, tokens, out = folder / "models", folder / "tokens", folder / "tune"

    def work() -> dict[str, Any]:
        return tune_on(models / BASE, tokens / "train", out, models / ASSISTANT, run.tune)

    print_ = fingerprint(fingerprint_of(folder / "pretrain"), run.tune)
    run_stage(Stage("tune", out, print_, (models / BASE, tokens), (models / ASSISTANT,)), work)


def tune_on(base: Path, examples: Path, work: Path, out: Path, t: tuning.Tune) -> dict[str, Any]:
    """Tunes the model of folder ``base`` on encoded examples; checkpoints in ``work``, the new model in ``out``."""
    params, c = load_model(base)
    training = tuning.training(t, examples, Encoder.load(base).budget.question_weight)
    sources = {name: some for name, some in open_examples(examples).items() if name in training.phases[0].weights}
    missing = say_left_out(sources, training.shape)
    params = train(params, c, training, Folders(examples, work), f"tune {out.name}")
    facts = read_config(base)[1] | {"name": out.name, "tuned_steps": t.steps}
    write_model_folder(params, c, base, out, facts)
    compare.plot_losses(compare.find_runs([work]), work / compare.PLOT)
    facts = _amount(sources.values(), training.shape, t.steps)
    return {"tuned_steps": t.steps, **facts, "shape": plain(training.shape), "left_out": missing}


def _amount(sources: Iterable[Examples], shape: BatchShape, steps: int) -> dict[str, Any]:
    """How many examples fit a row, and about how often training reads each: a row holds what its scarcest budget allows."""
    every = np.concatenate([np.stack([some.lengths(name) for name in shape.budgets], 1) for some in sources])
    room = np.array([*shape.budgets.values()])
    some = every[(every <= room).all(1)]
    mean = some.mean(0) if len(some) else room
    a_row = (room[mean > 0] / mean[mean > 0]).min()
    return {"examples": len(some), "epochs": round(float(steps * shape.batch_size * a_row / max(len(some), 1)), 1)}


def make_nano(run: Recipe, folder: Path) -> None:
    """4-bit weights of the assistant, their size, and the loss they cost."""
    assistant, nano, out = folder / "models" / ASSISTANT, folder / "models" / NANO, folder / "compress"

    def work() -> dict[str, Any]:
        params, c = load_model(assistant)
        small = quantize_model(params, model.weights(c), run.quantization_group)
        held = open_examples(folder / "tokens" / "validation")
        losses = {name: validate(p, c, held, run.pretrain.shape) for name, p in ((ASSISTANT, params), (NANO, small))}
        write_model_folder(
            small, c, assistant, nano, read_config(assistant)[1] | {"name": NANO, "group": run.quantization_group}
        )
        sizes = {n: (folder / "models" / n / "weights.safetensors").stat().st_size for n in (ASSISTANT, NANO)}
        write_json(out / "report.json", {"bytes": sizes, "validation_nats": losses})
        CONSOLE.print(f"{sizes[ASSISTANT]:,} bytes → {sizes[NANO]:,} bytes")
        return {"bytes": sizes}

    print_ = fingerprint(fingerprint_of(folder / "tune"), run.quantization_group)
    run_stage(Stage("compress", out, print_, (assistant, folder / "tokens"), (nano,)), work)


def make_report(run: Recipe, folder: Path) -> None:
    """The report card of the assistant and its 4-bit form."""
    models = {"float32": folder / "models" / ASSISTANT, "4-bit": folder / "models" / NANO}
    make_card(folder, models, folder / "report", fingerprint(fingerprint_of(folder / "compress")))


def make_card(folder: Path, models: dict[str, Path], out: Path, print_: str) -> None:
    """The stage that asks the models of some folders the run's test split."""
    from alhena.evaluate.evaluation import evaluate_models

    test = folder / "curated" / "test"
    stage = Stage("evaluate", out, print_, (folder / "curated", *models.values()))
    run_stage(stage, lambda: evaluate_models(test, models, out))


STAGES = (
    make_corpus,
    make_curated,
    make_tokens,
    pretrain_audio_encoder_stage,
    make_base,
    make_assistant,
    make_nano,
    make_report,
)


def run_pipeline(run: Recipe, folder: Path) -> None:
    """The whole journey; type it again after an interruption and it goes on where it was."""
    for make in STAGES:
        make(run, folder)
