"""The journey, stage by stage: each reads the artefact of the one before it, writes its own, and is not repeated when it is whole.

    corpus → curate → tokenise (→ listen) → pretrain → tune → compress → evaluate

A stage's fingerprint is made of its settings and of the fingerprint before it, so a changed recipe repeats just what it must.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from alhena.align import tune as tuning
from alhena.artifacts import copy_atomically, fingerprint, finish_stage, is_finished, read_json, start_stage, write_json
from alhena.compress.quantise import quantise_model
from alhena.content import Image, read_documents
from alhena.corpus import starter
from alhena.corpus.curate import curate
from alhena.media import decode_image
from alhena.model import config, image_tokenizer, model, sharding
from alhena.model.weights import load_model, read_config, read_tree, save_model, write_tree
from alhena.pretrain import image_tokenizer as image_training
from alhena.pretrain import ladder, runs
from alhena.pretrain.best_rq import listen
from alhena.pretrain.loop import open_examples, train, validate
from alhena.pretrain.replay import Replayed, replay
from alhena.pretrain.replicas import everywhere
from alhena.pretrain.scaling import Law
from alhena.progress import progress_bar
from alhena.run import Run
from alhena.tokens import text, tokenise
from alhena.tokens.encode import Encoder
from alhena.tokens.vocabulary import Vocabulary

CONSOLE = Console()
BASE, ASSISTANT, NANO = "base", "assistant", "nano"
EARS = "listen"
_KEPT = ("text.model", "vocabulary.json", "image_tokenizer.json", "image_tokenizer.safetensors")


def stage(folder: Path, name: str, print_: str, work: Callable[[], dict[str, Any]]) -> None:
    """Runs a stage unless its folder says that it has finished with the same fingerprint."""
    if is_finished(folder, print_):
        CONSOLE.print(f"[dim]✓ {name}: finished before, kept ({folder})[/dim]")
        return
    first = jax.process_index() == 0
    if first:
        start_stage(folder, print_)
    everywhere(None)  # of several processes the others wait until the folder is there
    CONSOLE.rule(f"[bold]{name}[/bold]", align="left")
    began = time.monotonic()
    facts = work()
    seconds = round(time.monotonic() - began, 1)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    if first:
        finish_stage(folder, print_, {"seconds": seconds, "peak_gib": peak, **facts})
    CONSOLE.print(f"✓ {name}: {seconds:.0f} s → {folder}")


def _print_of(folder: Path) -> str:
    return read_json(folder / "stage.json")["fingerprint"]


def make_corpus(run: Run, folder: Path) -> None:
    raw, corpus = folder / "raw", run.corpus
    if corpus is None:
        raise ValueError(f"{run.name} is trained on documents of your own: put them under {raw} (docs/your-data.md)")
    stage(raw, "starter corpus", fingerprint("raw", corpus), lambda: {"documents": starter.build(raw, corpus)})


def make_curated(run: Run, folder: Path) -> None:
    raw, out = folder / "raw", folder / "curated"
    own = (file for file in sorted(raw.rglob("*")) if run.corpus is None and file.is_file())
    files = [(str(file.relative_to(raw)), file.stat().st_size) for file in own]
    origin = fingerprint("own", files) if files else _print_of(raw)
    stage(out, "curate", fingerprint(origin, run.curate), lambda: {"report": curate(raw, out, run.curate)})


def _learn_image_tokenizer(run: Run, curated: Path, out: Path) -> dict[str, Any]:
    pictures: list[Any] = []
    scenes: list[Any] = []
    for document in read_documents(curated / "train"):
        for content in document.contents:
            drawn = content.role == "model"
            if drawn or (document.source == "scenes" and len(scenes) < 1000):
                (pictures if drawn else scenes).extend(
                    decode_image(p.data) for p in content.parts if isinstance(p, Image)
                )
    measured = image_training.train(pictures + scenes, run.image_tokenizer, run.image_training, out)
    params, c = image_tokenizer.load(out)
    square = [p for p in pictures if p.shape[0] == p.shape[1]][:14]
    image_training.draw_reconstructions(params, c, square, out / "reconstructions.png")
    return measured


def make_tokens(run: Run, folder: Path) -> None:
    """Text pieces, image tokeniser, and the encoded splits."""
    curated, out = folder / "curated", folder / "tokens"
    settings = (
        run.text_pieces,
        run.image_tokenizer,
        run.image_training,
        run.vision,
        run.audio,
        run.budget,
        run.drop_condition,
    )
    images, print_ = folder / "image_tokenizer", fingerprint(_print_of(curated), *settings, run.pretrain.shape)
    image_print = fingerprint(_print_of(curated), run.image_tokenizer, run.image_training)
    stage(images, "image tokeniser", image_print, lambda: _learn_image_tokenizer(run, curated, images))

    def work() -> dict[str, Any]:
        with CONSOLE.status("learning text pieces from the whole corpus"):
            pieces = tokenise.learn_text(curated / "train", run.text_pieces)
        sample: dict[str, list[str]] = {}
        for language, some in tokenise.sample_texts(curated / "train", 500_000, seed=1):
            sample.setdefault(language, []).append(some)
        rates = text.coverage(pieces, sample)
        write_json(out / "coverage.json", rates)
        tokenise.draw_coverage(out / "coverage.png", rates)
        Encoder(pieces, Vocabulary(pieces.size, run.image_tokenizer.num_codes), run.vision, run.audio, run.budget).save(
            out
        )
        for name in _KEPT[2:]:
            copy_atomically(images / name, out / name)
        most = run.pretrain.shape.tokens
        return {s: encode(curated / s, out / s, out, most, s, run.drop_condition) for s in ("train", "validation")}

    stage(out, "tokenise", print_, work)


def encode(curated: Path, out: Path, tokens: Path, most: int, title: str, drop: float = 0.0) -> dict[str, Any]:
    """Encodes one split under a progress bar, with the tokenisers of the folder ``tokens``."""
    params, c = image_tokenizer.load(tokens)
    with progress_bar(CONSOLE) as progress:
        bar = progress.add_task(f"encode {title}", total=tokenise.count_documents(curated))
        draw = lambda images: image_tokenizer.encode_images(params, c, list(images))  # noqa: E731
        return tokenise.encode_split(
            curated,
            out,
            tokens,
            most,
            draw,
            drop,
            advance=lambda done: progress.update(bar, advance=done),
        )


def publish(params: model.Params, c: config.Model, tokens: Path, out: Path, facts: dict[str, Any]) -> None:
    """A model folder, complete in itself: weights, configuration, tokenisers."""
    for name in _KEPT:
        copy_atomically(tokens / name, out / name)
    save_model(out, params, c, facts)


def _beginning(run: Run, folder: Path) -> tuple[model.Params, config.Model]:
    """The model before its first step."""
    c = run.model(Encoder.load(folder / "tokens").vocabulary)
    with sharding.on(run.pretrain.mesh):
        params = model.init(jax.random.key(run.pretrain.seed), c)
        if run.listen is None:
            return params, c
        return replace(params, audio=read_tree(folder / EARS / "audio.safetensors", model.weights(c).audio)), c


def make_ears(run: Run, folder: Path) -> None:
    """The audio encoder, taught by sound alone, if the recipe says so."""
    tokens, out, t = folder / "tokens", folder / EARS, run.listen
    if t is None:
        return

    def work() -> dict[str, Any]:
        c = run.model(Encoder.load(tokens).vocabulary)
        params = model.init(jax.random.key(run.pretrain.seed), c)
        assert c.audio is not None and params.audio is not None
        ears, facts = listen(params.audio, c.audio, t, open_examples(tokens / "train"), out / "checkpoints")
        write_tree(out / "audio.safetensors", ears)
        return facts

    stage(out, "listen", fingerprint(_print_of(tokens), t, run.audio), work)


def replay_base(run: Run, folder: Path, step: int) -> Replayed:
    """Pre-training up to ``step`` done again from a kept checkpoint, compared with what was recorded."""
    params, c = _beginning(run, folder)
    return replay(params, c, run.pretrain, folder / "tokens" / "train", folder / "pretrain", step)


def fit_scaling(run: Run, folder: Path, budgets: Sequence[float], factors: Sequence[float]) -> Law:
    """A ladder of the run's model, smaller, on the run's tokens; rungs that are done are kept."""
    tokens, out = folder / "tokens", folder / "scaling"
    c = run.model(Encoder.load(tokens).vocabulary)
    rungs = ladder.climb(c, run.pretrain, tokens / "train", tokens / "validation", out, budgets, factors)
    return ladder.fit_ladder(rungs, out)


def make_base(run: Run, folder: Path) -> None:
    tokens, out = folder / "tokens", folder / "pretrain"

    def work() -> dict[str, Any]:
        params, c = _beginning(run, folder)
        facts = {
            "parameters": model.count(params),
            "tokens_seen": run.pretrain.steps * run.pretrain.shape.rows * run.pretrain.shape.tokens,
        }
        CONSOLE.print(f"{facts['parameters']:,} parameters, {run.pretrain.steps:,} steps of {run.pretrain.shape}")
        params = train(params, c, run.pretrain, tokens / "train", out, f"pretrain {run.name}", tokens / "validation")
        params = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params) if several else params
        if jax.process_index() == 0:
            publish(params, c, tokens, folder / "models" / BASE, {"name": BASE, **facts})
            runs.draw(runs.find([out]), out / runs.PLOT)
        return facts

    several = jax.process_count() > 1
    # On which chips it is trained, and how often it is copied, is not what is trained: a run may go on with fewer.
    settings = replace(run.pretrain, mesh=None, copy_every=0)
    stage(out, "pretrain", fingerprint(_print_of(tokens), settings, run.decoder, run.compute, run.listen), work)


def make_assistant(run: Run, folder: Path) -> None:
    models, out = folder / "models", folder / "tune"

    def work() -> dict[str, Any]:
        return tune_on(models / BASE, folder / "tokens" / "train", out, models / ASSISTANT, run.tune)

    stage(out, "tune", fingerprint(_print_of(folder / "pretrain"), run.tune), work)


def tune_on_documents(base: Path, curated: Path, work: Path, out: Path, t: tuning.Tune) -> None:
    """Tunes the model of folder ``base`` on curated Documents of one's own; encoded examples and checkpoints in ``work``."""
    if not (work / "encoded.json").exists():
        counts = encode(curated, work / "examples", base, t.shape.tokens, "answers")
        write_json(work / "encoded.json", counts)
    tune_on(base, work / "examples", work, out, t)


def tune_on(base: Path, examples: Path, work: Path, out: Path, t: tuning.Tune) -> dict[str, Any]:
    """Tunes the model of folder ``base`` on encoded examples; checkpoints in ``work``, the new model in ``out``."""
    params, c = load_model(base)
    questions = Encoder.load(base).budget.question_weight
    params = tuning.tune(params, c, t, examples, work, questions, f"tune {out.name}")
    facts = read_config(base)[1] | {"name": out.name, "tuned_steps": t.steps}
    publish(params, c, base, out, facts)
    runs.draw(runs.find([work]), work / runs.PLOT)
    return {"tuned_steps": t.steps}


def make_nano(run: Run, folder: Path) -> None:
    """4-bit weights of the assistant, their size, and the loss they cost."""
    assistant, nano, out = folder / "models" / ASSISTANT, folder / "models" / NANO, folder / "compress"

    def work() -> dict[str, Any]:
        params, c = load_model(assistant)
        small = quantise_model(params, model.weights(c), run.group)
        held = open_examples(folder / "tokens" / "validation")
        losses = {name: validate(p, c, held, run.pretrain.shape) for name, p in ((ASSISTANT, params), (NANO, small))}
        publish(small, c, assistant, nano, read_config(assistant)[1] | {"name": NANO, "group": run.group})
        sizes = {n: (folder / "models" / n / "weights.safetensors").stat().st_size for n in (ASSISTANT, NANO)}
        write_json(out / "report.json", {"bytes": sizes, "validation_nats": losses})
        CONSOLE.print(f"{sizes[ASSISTANT]:,} bytes → {sizes[NANO]:,} bytes")
        return {"bytes": sizes}

    stage(out, "compress", fingerprint(_print_of(folder / "tune"), run.group), work)


def make_report(run: Run, folder: Path) -> None:
    from alhena.evaluate.card import report_card

    out = folder / "report"
    models = {"float32": folder / "models" / ASSISTANT, "4-bit": folder / "models" / NANO}
    test = folder / "curated" / "test"
    stage(out, "evaluate", fingerprint(_print_of(folder / "compress")), lambda: report_card(test, models, out))


STAGES = (make_corpus, make_curated, make_tokens, make_ears, make_base, make_assistant, make_nano, make_report)


def travel(run: Run, folder: Path) -> None:
    """The whole journey; type it again after an interruption and it goes on where it was."""
    for make in STAGES:
        make(run, folder)
