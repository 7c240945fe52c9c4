"""Models made of a run's models and documents of one's own, and report cards of single models.

CURATED + RUN/models/assistant ─► RUN/tuned/NAME (encoded examples, checkpoints) ─► RUN/models/NAME
RUN/curated/test + RUN/models/NAME ─► RUN/reports/NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alhena.align.sft import Tune, validation_nats
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
from alhena.pipeline import encode, make_card, tune_on
from alhena.stages import Stage, check_inputs, fingerprint_of, run_stage
from alhena.tokens.tokenize import Encoding


def tuning_stage(run: Path, base: Path, curated: Path, name: str, t: Tune) -> Stage:
    """The stage RUN/tuned/NAME, keyed by the content of documents and base model, and by the settings."""
    print_ = fingerprint("tuned", content_fingerprint(curated), content_fingerprint(base), t)
    return Stage(f"tune {name}", run / "tuned" / name, print_, models=(run / "models" / name,))


def tune_on_documents(run: Path, base: Path, curated: Path, name: str, t: Tune) -> dict[str, Any]:
    """Tunes the model of folder ``base`` on curated Documents of one's own, to RUN/models/NAME; returns what was used and dropped.

    Encoded examples and checkpoints lie in RUN/tuned/NAME. Raises ValueError for a base that cannot be tuned.
    """
    if not curated.exists():
        raise ValueError(f"{curated}: no such folder of curated documents (alhena curate writes them)")
    if is_quantised(base):
        raise ValueError(
            f"{base}: a model of 4-bit weights cannot be tuned; tune the model that it was made of (--base assistant)"
        )
    check_inputs(base)
    stage = tuning_stage(run, base, curated, name, t)
    examples = stage.folder / "examples"

    def work() -> dict[str, Any]:
        counts = _encode_once(curated, examples, t.encoding(base))
        before = validation_nats(base, t.shape)
        facts = tune_on(base, examples, stage.folder, stage.models[0], t)
        losses = {"before": before, "after": validation_nats(stage.models[0], t.shape)}
        return {**facts, "encoded": counts, "validation_nats": losses}

    return run_stage(stage, work)


def _encode_once(curated: Path, examples: Path, how: Encoding) -> dict[str, Any]:
    """Encodes the documents, unless ``examples.json`` lists what an interrupted stage encoded, and it is whole. Returns the counts."""
    listed = examples.with_suffix(".json")
    if not listed.exists() or changed_files(examples, read_entries(listed)):
        counts = encode(curated, examples, how, "answers")
        flush_all(examples)
        write_json(listed, {"counts": counts, "files": describe_files(examples, files_under(examples))})
    return read_json(listed, counts=dict)["counts"]


def is_quantised(folder: Path) -> bool:
    """Whether a model folder holds 4-bit weights, by the names of its arrays."""
    path = folder / "weights.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            return any(name.endswith(".packed") for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def report_on(folder: Path, model_: Path) -> Path:
    """The report card of one model, on the run's test split; returns its folder."""
    check_inputs(model_)
    print_ = fingerprint(fingerprint_of(folder / "curated"), content_fingerprint(model_))
    out = folder / "reports" / model_.name
    make_card(folder, {model_.name: model_}, out, print_)
    return out
