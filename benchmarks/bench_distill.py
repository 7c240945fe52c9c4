"""The distilled starter against the same student without a teacher, at equal tokens: report cards of several seeds, mean and spread.

    python benchmarks/bench_distill.py WORK --run runs/starter                     the teacher is trained first (recipe starter_large)
    python benchmarks/bench_distill.py WORK --run runs/starter --teacher MODEL     a teacher that exists
    python benchmarks/bench_distill.py WORK --run runs/starter --collect-only      the results so far

RUN has the curated starter corpus. Everything is resumed and what is finished is skipped, so the same command continues after an
interruption. Seeds alternate between both arms: after each pair benchmarks/results/distillation_NAME.json is written anew.
"""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from alhena import pipeline
from alhena.compress.distill import Distill, load_teacher
from alhena.files import read_json, write_json
from alhena.model import model
from alhena.model.storage.weights import read_config
from alhena.recipe import Recipe
from alhena.train.chunk_loss import Mix
from alhena.train.mixture import open_examples
from alhena.train.monitoring.metrics import read_metrics
from alhena.train.monitoring.validation import validate
from recipes import starter, starter_large

ARMS = ("plain", "distilled")


@dataclass(frozen=True)
class Bench:
    work: Annotated[Path, tyro.conf.Positional]  # folder of all runs
    run: Path = Path("runs/starter")  # a run folder with the curated starter corpus
    teacher: Path | None = None  # a model folder; it is trained when none is named
    name: str = "large"  # of this experiment: results/distillation_NAME.json
    steps: int | None = None  # pre-training steps of a student; the recipe's when left out
    seeds: int = 3
    soft: float = 0.7  # share of the loss on the teacher's distribution
    temperature: float = 1.0  # of both distributions in that share
    results: Path = Path(__file__).parent / "results"  # folder of the JSON file
    # Rows of sources that the teacher does not know, by the beginning of their names; a second mean leaves them out.
    unknown: tuple[str, ...] = ()
    collect_only: bool = False  # only write the results of what has finished


def link(source: Path, target: Path) -> None:
    """A folder of another run, to be read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(source.resolve(), target_is_directory=True)


def trained_teacher(bench: Bench) -> Path:
    """The teacher's model folder; its training is resumed, or skipped when it has finished."""
    if bench.teacher is not None:
        return bench.teacher
    folder, recipe = bench.work / "teacher", starter_large.run()
    for name in ("raw", "curated", "image_tokenizer"):
        link(bench.run / name, folder / name)
    for stage in (pipeline.make_tokens, pipeline.make_base):
        stage(recipe, folder)
    return folder / "models" / pipeline.BASE


def student(bench: Bench, teacher: Path, seed: int) -> Recipe:
    """The recipe of a distilled student: that of the starter, with a schedule of ``bench.steps``."""
    base = starter.run()
    steps = bench.steps or base.pretrain.steps
    first = round(base.pretrain.phases[0].steps * steps / base.pretrain.steps)
    phases = (replace(base.pretrain.phases[0], steps=first), replace(base.pretrain.phases[1], steps=steps - first))
    pretrain = replace(base.pretrain, phases=phases, seed=seed, evaluate_every=steps)
    # Both arms are tuned without a teacher, on batches in the order of their seed.
    tune = replace(base.tune, seed=base.tune.seed + seed)
    mix = Mix(1 - bench.soft, bench.soft, bench.temperature)
    return replace(base, pretrain=pretrain, tune=tune, distill=Distill(teacher, mix))


def arm_folder(bench: Bench, arm: str, seed: int) -> Path:
    return bench.work / bench.name / f"{arm}-{seed}"


def train_and_measure(bench: Bench, teacher: Path, arm: str, seed: int) -> None:
    """Pre-training, tuning and report card of one student; both arms read the same tokens, made with the teacher's tokenizers."""
    recipe, folder, shared = (
        student(bench, teacher, seed),
        arm_folder(bench, arm, seed),
        bench.work / bench.name / "data",
    )
    link(bench.run / "curated", shared / "curated")
    pipeline.make_tokens(student(bench, teacher, 0), shared)
    for name in ("curated", "tokens"):
        link(shared / name, folder / name)
    if arm == "plain":
        recipe = replace(recipe, distill=None)
    pipeline.make_base(recipe, folder)
    pipeline.make_assistant(recipe, folder)
    models = {arm: folder / "models" / pipeline.ASSISTANT}
    print_ = pipeline.fingerprint("distillation", pipeline.fingerprint_of(folder / "tune"))
    pipeline.evaluation_stage(folder, models, folder / "report", print_)


def rows_of(folder: Path, arm: str) -> dict[str, dict[str, Any]]:
    """Scores of one finished report card by row, oriented so that more is better, and validation losses."""
    card = read_json(folder / "report" / "results.json")
    return {
        f"{row['name']}, {row['metric']}": {"score": row["scores"][arm], "lower": row["lower_is_better"]}
        for row in card["rows"]
    }


def summary(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 3), "stdev": spread and round(spread, 3), "values": values}


def mean_gain(rows: dict[str, Any]) -> dict[str, Any] | None:
    """The gain by seed, in the mean of the rows in percent."""
    points = [row["gain"]["values"] for name, row in rows.items() if "bits per byte" not in name]
    gains = [round(statistics.mean(column), 3) for column in zip(*points, strict=True)]
    return summary(gains) if gains else None


def collect(bench: Bench, teacher: Path) -> dict[str, Any]:
    """Results of all seeds for which both arms have finished."""
    finished = [
        s for s in range(bench.seeds) if all((arm_folder(bench, a, s) / "report" / "stage.json").exists() for a in ARMS)
    ]
    cards = {arm: [rows_of(arm_folder(bench, arm, seed), arm) for seed in finished] for arm in ARMS}
    rows: dict[str, Any] = {}
    for name in cards["plain"][0] if finished else ():
        rows[name] = {arm: summary([card[name]["score"] for card in cards[arm]]) for arm in ARMS}
        rows[name]["lower_is_better"] = cards["plain"][0][name]["lower"]
        sign = -1 if rows[name]["lower_is_better"] else 1
        pairs = zip(cards["distilled"], cards["plain"], strict=True)
        rows[name]["gain"] = summary([round(sign * (a[name]["score"] - b[name]["score"]), 3) for a, b in pairs])
    recipe = student(bench, teacher, 0)
    c = read_config(teacher)[0]
    return {
        "teacher": {"name": teacher.parent.parent.name if bench.teacher is None else teacher.name, "parameters": model.count(model.weights(c))},
        "steps": recipe.pretrain.steps,
        "tokens": recipe.pretrain.tokens,
        "mix": vars(recipe.distill.mix) if recipe.distill else None,
        "seeds": finished,
        # Mean over the rows in percent, oriented so that more is better, of each seed.
        "mean_gain_in_points": mean_gain(rows),
        "unknown_to_teacher": list(bench.unknown),
        "mean_gain_in_points_of_known_rows": mean_gain(
            {name: row for name, row in rows.items() if not name.startswith(bench.unknown)}
        ),
        "rows": rows,
        "validation_nats": {arm: [validation(arm_folder(bench, arm, seed)) for seed in finished] for arm in ARMS}
        | {"teacher": teacher_validation(bench, teacher)},
        "device": {"machine": platform.machine(), "devices": str(jax.devices()), "jax": jax.__version__},
    }  # fmt: skip


def validation(folder: Path) -> dict[str, float]:
    """Validation loss by source at the end of pre-training."""
    return [
        line["loss_by_modality"]
        for line in read_metrics(folder / "pretrain" / "metrics.jsonl")
        if line["kind"] == "validation"
    ][-1]


@cache
def teacher_validation(bench: Bench, teacher: Path) -> dict[str, float]:
    """The teacher's loss by source: what it does not know, it cannot teach."""
    loaded, tokens = load_teacher(teacher), bench.work / bench.name / "data" / "tokens"
    return validate(loaded.params, loaded.c, open_examples(tokens / "validation"), starter.SHAPE)


def main(bench: Bench) -> None:
    teacher = trained_teacher(bench)
    for seed in () if bench.collect_only else range(bench.seeds):
        for arm in ARMS:
            train_and_measure(bench, teacher, arm, seed)
        write_json(bench.results / f"distillation_{bench.name}.json", collect(bench, teacher))
    results = collect(bench, teacher)
    write_json(bench.results / f"distillation_{bench.name}.json", results)
    print(f"seeds {results['seeds']}: mean gain {results['mean_gain_in_points']}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
