"""Tuning a run's model on the user's own documents, and report cards of single models.

CURATED + RUN/models/assistant ─► RUN/tuned/NAME (encoded examples, checkpoints) ─► RUN/models/NAME
RUN/curated/test + RUN/models/NAME ─► RUN/reports/NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alhena.align.sft import Tune, validation_nats
from alhena.compress.distill import Distill, check_same_tokens
from alhena.files import (
    changed_files,
    content_fingerprint,
    describe_files,
    files_under,
    fingerprint,
    flush_all,
    read_entries,
    read_json,
    write_json,
)
from alhena.model.storage.folders import is_adapter, is_quantized
from alhena.pipeline import evaluation_stage
from alhena.stages import Stage, check_inputs, fingerprint_of, run_stage
from alhena.tokens.examples.tokenize import Encoding
from alhena.tuning import encode, tune_on


def run_of(model: Path) -> Path:
    """The folder in which the work on a model folder is kept: its run folder, if it is in one.

    >>> run_of(Path("runs/starter/models/assistant")), run_of(Path("gemma"))
    (PosixPath('runs/starter'), PosixPath('.'))
    """
    return model.parent.parent if model.parent.name == "models" else model.parent


def tuning_stage(base: Path, curated: Path, name: str, t: Tune, distill: Distill | None = None) -> Stage:
    """The stage that tunes the model of folder ``base`` as NAME, in a folder beside it.

    Its fingerprint depends on the content of the documents, of the base model and of the teacher, and on the settings.
    """
    teacher = () if distill is None else (distill.identity(),)
    print_ = fingerprint("tuned", content_fingerprint(curated), content_fingerprint(base), t, *teacher)
    return Stage(f"tune {name}", run_of(base) / "tuned" / name, print_, models=(base.parent / name,))


def tune_on_documents(base: Path, curated: Path, name: str, t: Tune, distill: Distill | None = None) -> dict[str, Any]:
    """Tunes the model of folder ``base`` on curated documents as NAME, beside it; returns what was used and dropped.

    Encoded examples and checkpoints are in tuned/NAME of the run folder. Raises ValueError for a base that cannot be tuned.
    """
    if not curated.exists():
        raise ValueError(f"{curated}: no such folder of curated documents (alhena curate writes them)")
    if is_adapter(base):
        raise ValueError(f"{base}: adapters cannot be tuned; tune their base, or export them merged (alhena export)")
    if is_quantized(base) and t.lora is None:
        raise ValueError(
            f"{base}: a model with 4-bit weights cannot be tuned, but adapters beside it can (--lora 16); or tune the model that it was "
            "quantized from (--base)"
        )
    check_inputs(base)
    if distill is not None:
        check_inputs(distill.teacher)
        check_same_tokens(distill.teacher, base)
    stage = tuning_stage(base, curated, name, t, distill)
    examples = stage.folder / "examples"

    def work() -> dict[str, Any]:
        counts = encode_once(curated, examples, t.encoding(base))
        before = validation_nats(base, t.shape)
        facts = tune_on(base, examples, stage.folder, stage.models[0], t, distill)
        losses = {"before": before, "after": validation_nats(stage.models[0], t.shape)}
        return {**facts, "encoded": counts, "validation_nats": losses}

    return run_stage(stage, work)


def encode_once(curated: Path, examples: Path, how: Encoding) -> dict[str, Any]:
    """Encodes the documents; returns the counts. Skipped when an interrupted stage finished this: ``examples.json`` lists the files."""
    manifest = examples.with_suffix(".json")
    if not manifest.exists() or changed_files(examples, read_entries(manifest)):
        counts = encode(curated, examples, how, "answers")
        flush_all(examples)
        write_json(manifest, {"counts": counts, "files": describe_files(examples, files_under(examples))})
    return read_json(manifest, counts=dict)["counts"]


def report_on(run: Path, model: Path) -> Path:
    """Writes the report card of one model on the run's test split; returns its folder, RUN/reports/NAME."""
    check_inputs(model)
    out = run / "reports" / model.name
    evaluation_stage(
        run, {model.name: model}, out, fingerprint(fingerprint_of(run / "curated"), content_fingerprint(model))
    )
    return out
