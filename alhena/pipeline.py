"""The pipeline: stages in order. Each reads the output of the stage before it, and is skipped when it has finished.

    corpus → curate → image tokenizer → tokenize (→ audio pre-training) → pretrain (→ context extension) → tune → compress → evaluate

The fingerprint of a stage depends on its settings and on the fingerprints of its inputs, so a changed recipe repeats only what
depends on the change (:mod:`alhena.stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from alhena.compress import report
from alhena.compress.distill import distillation, tokenizers_fingerprint, tokenizers_of
from alhena.compress.measuring import HeldOut, quantize_and_measure
from alhena.compress.steps import Source
from alhena.corpus import starter
from alhena.corpus.curate import curate
from alhena.files import content_fingerprint, copy_atomically, fingerprint, write_json
from alhena.model import config, image_tokenizer, model, sharding
from alhena.model.quantized.types import type_table
from alhena.model.storage import base_model
from alhena.model.storage.folders import load_model
from alhena.model.storage.weights import WEIGHTS, read_config, read_tree, write_tree
from alhena.recipe import Extension, Recipe
from alhena.scaling import ladder
from alhena.scaling.laws import ScalingLaw
from alhena.stages import CONSOLE, Stage, check_inputs, fingerprint_of, finish_stage, run_stage, start_stage
from alhena.tokens import extension
from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import IMAGE_FILES
from alhena.tokens.examples import tokenize
from alhena.tokens.text import tokenizer
from alhena.tokens.vocabulary import Vocabulary
from alhena.train.components import image_tokenizer as image_training
from alhena.train.components.best_rq import pretrain_audio_encoder
from alhena.train.mixture import open_examples
from alhena.train.monitoring import compare
from alhena.train.monitoring.replay import Replayed, replay
from alhena.train.step import Taught
from alhena.train.trainer import Folders, train
from alhena.tuning import encode, report_left_out, tune_on, write_model_folder

BASE, ASSISTANT, NANO = "base", "assistant", "nano"
AUDIO_ENCODER = "audio_encoder"
# Of each source, on which every step of the compression is measured.
VALIDATION_BATCHES = 4
_ADVICE_RAW = "your own documents need a recipe with corpus=None (docs/your-data.md); or choose another run folder"


def make_corpus(run: Recipe, folder: Path) -> None:
    """RUN/raw: the starter corpus. Raises ValueError when the recipe requires the user's own documents and there are none."""
    raw, corpus = folder / "raw", run.corpus
    if corpus is None:
        if not raw.is_dir():
            raise ValueError(f"{run.name} is trained on your own documents: put them under {raw} (docs/your-data.md)")
        return
    stage = Stage("starter corpus", raw, fingerprint("raw", corpus), advice=_ADVICE_RAW)
    run_stage(stage, lambda: {"documents": starter.build(raw, corpus)})


def make_curated(run: Recipe, folder: Path) -> None:
    """RUN/curated: clean documents by split, and reports of what was dropped."""
    raw, out = folder / "raw", folder / "curated"
    if run.corpus is None:
        make_corpus(run, folder)
    origin = content_fingerprint(raw) if run.corpus is None else fingerprint_of(raw)
    reads = () if run.corpus is None else (raw,)
    stage = Stage("curate", out, fingerprint(origin, run.curate), reads)
    run_stage(stage, lambda: {"report": curate(raw, out, run.curate)})


def _with_base(run: Recipe, print_: str, reads: tuple[Path, ...], names: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Fingerprint and inputs of a stage that reads these files of the model that is extended, if the recipe has one."""
    if run.base is None:
        return print_, reads
    return fingerprint(print_, extension.base_fingerprint(run.base, names)), (*reads, run.base)


def _with_teacher(run: Recipe, print_: str, reads: tuple[Path, ...]) -> tuple[str, tuple[Path, ...]]:
    """Fingerprint and inputs of a stage that reads the teacher's tokenizers, if the recipe has a teacher."""
    if run.distill is None:
        return print_, reads
    return fingerprint(print_, tokenizers_fingerprint(run.distill.teacher)), (*reads, run.distill.teacher)


def _train_image_tokenizer(run: Recipe, curated: Path, out: Path) -> dict[str, Any]:
    if run.distill is not None:
        _, _, theirs = tokenizers_of(run.distill.teacher)
        if theirs != run.image_tokenizer:
            raise ValueError(
                f"{run.name}: Recipe.image_tokenizer is {run.image_tokenizer}, that of the teacher {theirs}; write the teacher's"
            )
        for name in IMAGE_FILES:
            copy_atomically(run.distill.teacher / name, out / name)
        return {}
    generated, scenes = tokenize.sample_images(curated / "train")
    measured = image_training.train(generated + scenes, run.image_tokenizer, run.image_tokenizer_training, out)
    if not measured["images"]:
        CONSOLE.print("no image to train the image tokenizer on: this model will not generate images", style="yellow")
        return measured
    params, c = image_tokenizer.load(out)
    square = [image for image in generated if image.shape[0] == image.shape[1]][:14]
    image_training.plot_reconstructions(params, c, square, out / "reconstructions.png")
    return measured


def _train_text_tokenizer(run: Recipe, curated: Path, out: Path) -> None:
    """Trains the text tokenizer (or takes that of the base), and writes it with the other settings of the encoder.

    Reports tokens per character by language.
    """
    text: tokenizer.Tokenizer
    if run.base is not None:
        text = extension.base_tokenizer(run.base, run.text_vocabulary_size)
    elif run.distill is not None:
        text, _, _ = tokenizers_of(run.distill.teacher)
    else:
        with CONSOLE.status("training the text tokenizer on a sample of the corpus"):
            text = tokenize.train_text_tokenizer(curated / "train", run.text_vocabulary_size)
    sample: dict[str, list[str]] = {}
    for language, line in tokenize.sample_texts(curated / "train", 500_000, seed=1):
        sample.setdefault(language, []).append(line)
    coverage = tokenizer.coverage(text, sample)
    write_json(out / "coverage.json", coverage)
    tokenize.plot_coverage(out / "coverage.png", coverage)
    size = text.size if run.base is None else run.text_vocabulary_size
    vocabulary = Vocabulary(size, run.image_tokenizer.num_codes)
    Encoder(text, vocabulary, run.vision, run.audio, run.budget).save(out)


def make_tokens(run: Recipe, folder: Path) -> None:
    """RUN/image_tokenizer and RUN/tokens: both tokenizers, and the encoded splits."""
    curated, images, out = folder / "curated", folder / "image_tokenizer", folder / "tokens"
    image_print = fingerprint(fingerprint_of(curated), run.image_tokenizer, run.image_tokenizer_training)
    image_stage = Stage("image tokenizer", images, *_with_teacher(run, image_print, (curated,)))
    run_stage(image_stage, lambda: _train_image_tokenizer(run, curated, images))

    def work() -> dict[str, Any]:
        _train_text_tokenizer(run, curated, out)
        for name in IMAGE_FILES:
            copy_atomically(images / name, out / name)
        how = tokenize.Encoding(out, run.max_tokens, run.window, run.condition_dropout)
        return {split: encode(curated / split, out / split, how, split) for split in ("train", "validation")}

    settings = (run.text_vocabulary_size, run.image_tokenizer, run.image_tokenizer_training, run.vision, run.audio)
    how_long = (run.max_tokens, run.window)
    print_ = fingerprint(fingerprint_of(curated), *settings, run.budget, run.condition_dropout, *how_long)
    inputs = _with_teacher(run, *_with_base(run, print_, (curated, images), extension.TEXT_FILES))
    stage = Stage("tokenize", out, *inputs)
    run_stage(stage, work)


def _initial_model(run: Recipe, folder: Path) -> tuple[model.Params, config.Model]:
    """The model before its first training step."""
    c = run.model(Encoder.load(folder / "tokens").vocabulary)
    with sharding.use_mesh(run.pretrain.mesh):
        key = jax.random.key(run.pretrain.seed)
        params = model.init(key, c) if run.base is None else base_model.extended(key, c, run.base)
        if run.audio_pretraining is None:
            return params, c
        return replace(params, audio=read_tree(folder / AUDIO_ENCODER / "audio.safetensors", model.weights(c).audio)), c


def _initial_training(run: Recipe, folder: Path) -> tuple[model.Params | Taught, config.Model]:
    """The model before its first training step, with its teacher if it has one."""
    params, c = _initial_model(run, folder)
    return (params if run.distill is None else Taught(params, distillation(run.distill, folder / "tokens", c))), c


def make_audio_encoder(run: Recipe, folder: Path) -> None:
    """RUN/audio_encoder: the audio encoder, pre-trained on audio without text, if the recipe has settings for it."""
    tokens, out, t = folder / "tokens", folder / AUDIO_ENCODER, run.audio_pretraining
    if t is None:
        return

    def work() -> dict[str, Any]:
        c = run.model(Encoder.load(tokens).vocabulary)
        params = model.init(jax.random.key(run.pretrain.seed), c)
        assert params.audio is not None
        encoder, facts = pretrain_audio_encoder(params.audio, run.audio, t, open_examples(tokens / "train"), out)
        write_tree(out / "audio.safetensors", encoder)
        return facts

    run_stage(Stage("audio pre-training", out, fingerprint(fingerprint_of(tokens), t, run.audio), (tokens,)), work)


def replay_base(run: Recipe, folder: Path, step: int) -> Replayed:
    """Repeats pre-training up to ``step`` from a checkpoint, and compares it with the recorded fingerprints."""
    params, c = _initial_training(run, folder)
    return replay(params, c, run.pretrain, folder / "tokens" / "train", folder / "pretrain", step)


def fit_scaling(run: Recipe, folder: Path, budgets: Sequence[float], factors: Sequence[float]) -> ScalingLaw:
    """Trains a ladder of smaller copies of the run's model on the run's tokens, and fits a scaling law to it.

    Finished rungs are kept as long as tokens and settings are unchanged. Raises ValueError where the run extends a model or has a
    teacher.
    """
    if run.base is not None:
        raise ValueError(f"{run.name} extends {run.base}: a ladder of smaller copies cannot start from its weights")
    if run.distill is not None:
        raise ValueError(f"{run.name} has a teacher: a ladder is trained without one; choose the recipe without it")
    tokens, out, t = folder / "tokens", folder / "scaling", run.pretrain
    check_inputs(tokens)
    c = run.model(Encoder.load(tokens).vocabulary)
    # The batch size is in the name of a rung's folder, and the number of steps follows from its budget.
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
    """RUN/pretrain and RUN/models/base: pre-training."""
    tokens, out = folder / "tokens", folder / "pretrain"
    folders = Folders(tokens / "train", out, tokens / "validation")

    def work() -> dict[str, Any]:
        taught, c = _initial_training(run, folder)
        facts = {
            "parameters": model.count(model.weights(c)),
            "tokens_seen": run.pretrain.tokens,
        }
        missing = report_left_out(open_examples(tokens / "train"), run.pretrain)
        CONSOLE.print(f"{facts['parameters']:,} parameters, {run.pretrain.steps:,} steps of {run.pretrain.shape}")
        params = train(taught, c, run.pretrain, folders, f"pretrain {run.name}")
        params = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params) if several else params
        if jax.process_index() == 0:
            write_model_folder(params, c, tokens, folder / "models" / BASE, {"name": BASE, **facts})
            compare.plot_losses(compare.find_runs([out]), out / compare.PLOT)
        return {**facts, "left_out": missing}

    several = jax.process_count() > 1
    # The result does not depend on the mesh or on in-memory checkpoints: a run may resume on other devices.
    settings = replace(run.pretrain, mesh=None, memory_checkpoint_every=0)
    print_ = fingerprint(fingerprint_of(tokens), settings, run.decoder, run.compute_dtype, run.audio_pretraining)
    reads = (tokens,) if run.audio_pretraining is None else (tokens, folder / AUDIO_ENCODER)
    if run.distill is not None:
        print_, reads = fingerprint(print_, run.distill.identity()), (*reads, run.distill.teacher)
    stage = Stage("pretrain", out, *_with_base(run, print_, reads, extension.MODEL_FILES), (folder / "models" / BASE,))
    run_stage(stage, work)


def _bases(run: Recipe, folder: Path) -> list[tuple[Path, Path]]:
    """The folders of stage and model of pre-training and of each extension, in order."""
    sizes = [e.training.shape.tokens for e in run.extensions]
    extended = [(folder / "extend" / str(n), folder / "models" / f"{BASE}-{n}") for n in sizes]
    return [(folder / "pretrain", folder / "models" / BASE), *extended]


def make_extended(run: Recipe, folder: Path) -> None:
    """RUN/extend/TOKENS and RUN/models/base-TOKENS: the extensions of the recipe, each of the model before it."""
    tokens, bases = folder / "tokens", _bases(run, folder)
    for e, (before, start), (stage, out) in zip(run.extensions, bases, bases[1:], strict=False):
        print_ = fingerprint(fingerprint_of(before), e.training.identity(), e.rope_base)
        title = f"extend to {e.training.shape.tokens:,} tokens"
        run_stage(Stage(title, stage, print_, (tokens, start), (out,)), partial(_extend, e, tokens, start, stage, out))


def _extend(e: Extension, tokens: Path, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """Trains the model of folder ``start`` on longer sequences, and writes it to ``out``."""
    t, (params, c), facts = e.training, load_model(start), read_config(start)[1]
    if e.rope_base is not None:
        c = replace(c, decoder=replace(c.decoder, rope_base=e.rope_base))
    missing = report_left_out(open_examples(tokens / "train"), t)
    CONSOLE.print(
        f"{t.steps:,} steps of {t.shape}" + ("" if e.rope_base is None else f", RoPE base {e.rope_base:,.0f}")
    )
    params = train(params, c, t, Folders(tokens / "train", work, tokens / "validation"), f"extend {facts['name']}")
    facts |= {"name": out.name, "tokens_seen": facts["tokens_seen"] + t.tokens}
    write_model_folder(params, c, start, out, facts)
    compare.plot_losses(compare.find_runs([work]), work / compare.PLOT)
    return {"context": t.shape.tokens, "rope_base": e.rope_base, "left_out": missing}


def make_assistant(run: Recipe, folder: Path) -> None:
    """RUN/tune and RUN/models/assistant: supervised tuning on the run's own chats."""
    assistant, tokens, out = folder / "models" / ASSISTANT, folder / "tokens", folder / "tune"
    before, base = _bases(run, folder)[-1]

    def work() -> dict[str, Any]:
        return tune_on(base, tokens / "train", out, assistant, run.tune)

    print_ = fingerprint(fingerprint_of(before), run.tune)
    run_stage(Stage("tune", out, print_, (base, tokens), (assistant,)), work)


def make_nano(run: Recipe, folder: Path) -> None:
    """RUN/models/nano: the assistant with quantized weights; sizes, types, and the losses of the steps on the way there."""
    assistant, nano, out, tokens = (
        folder / "models" / ASSISTANT,
        folder / "models" / NANO,
        folder / "compress",
        folder / "tokens",
    )

    def work() -> dict[str, Any]:
        params, c = load_model(assistant)
        last_phase, shape = run.pretrain.phases[-1], run.pretrain.shape
        t, source = run.quantization.training(last_phase.weights, shape), Source(params, c, assistant)
        held_out = HeldOut(tokens / "validation", shape, VALIDATION_BATCHES)
        last, losses = quantize_and_measure(source, run.quantization, t, Folders(tokens / "train", out), held_out)
        write_model_folder(last, c, assistant, nano, read_config(assistant)[1] | {"name": NANO})
        table = type_table(model.weights(c), run.quantization.types)
        sizes = {n: (folder / "models" / n / WEIGHTS).stat().st_size for n in (ASSISTANT, NANO)}
        write_json(out / report.FILE, report.facts(table, losses) | {"bytes": sizes})
        report.print_report(table, losses, CONSOLE)
        CONSOLE.print(f"{sizes[ASSISTANT]:,} bytes → {sizes[NANO]:,} bytes")
        return {"bytes": sizes}

    print_ = fingerprint(fingerprint_of(folder / "tune"), run.quantization)
    run_stage(Stage("compress", out, print_, (assistant, tokens), (nano,)), work)


def make_report(run: Recipe, folder: Path) -> None:
    """RUN/report: the report card of the assistant and its 4-bit form."""
    models = {name: folder / "models" / name for name in (ASSISTANT, NANO)}
    evaluation_stage(folder, models, folder / "report", fingerprint(fingerprint_of(folder / "compress")))


def evaluation_stage(folder: Path, models: dict[str, Path], out: Path, print_: str) -> None:
    """The evaluation stage: the report card of model folders on the run's test split."""
    from alhena.evaluate.evaluation import evaluate_models

    test = folder / "curated" / "test"
    stage = Stage("evaluate", out, print_, (folder / "curated", *models.values()))
    run_stage(stage, lambda: evaluate_models(test, models, out))


STAGES = (
    make_corpus,
    make_curated,
    make_tokens,
    make_audio_encoder,
    make_base,
    make_extended,
    make_assistant,
    make_nano,
    make_report,
)


def run_pipeline(run: Recipe, folder: Path) -> None:
    """Runs all stages: finished ones are skipped, an interrupted one resumes."""
    for make in STAGES:
        make(run, folder)
