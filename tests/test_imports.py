"""The house's walls: imports run one way only."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "alhena"
STAGES = ["corpus", "tokens", "model", "pretrain", "align", "compress", "serve", "evaluate"]
# A stage may import those before it. Exceptions, each with its reason:
ALLOWED = {
    ("tokens", "model"),  # the shapes of patches and chunks are the model's configuration
}
FORBIDDEN = {
    ("model", "corpus"), ("model", "pretrain"), ("align", "serve"), ("corpus", "tokens"), ("corpus", "model"),
}  # fmt: skip
ROOMS = ("content", "shapes", "artifacts", "media", "progress", "parquet", "pools")  # what every stage may use


def arrows() -> set[tuple[str, str, str]]:
    """(from, to, file) of every import of alhena inside alhena; rooms are folders, or files at the top."""
    out = set()
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{a.name}" if node.module == "alhena" else node.module for a in node.names]
            for name in names:
                if name.startswith("alhena."):
                    out.add((place, name.split(".")[1], str(file.relative_to(ROOT))))
    return out


def test_imports_run_one_way() -> None:
    for origin, target, file in arrows():
        if origin == target or target in ROOMS:
            continue
        assert target != "cli", f"{file}: nothing imports the command line"
        assert origin not in ROOMS, f"{file}: a shared room imports the stage {target}"
        assert (origin, target) not in FORBIDDEN, f"{file}: {origin} must never import {target}"
        if origin in STAGES and target in STAGES and (origin, target) not in ALLOWED:
            batch_only = origin == "model" and target == "tokens"  # the Batch is what the model reads
            assert batch_only or STAGES.index(target) < STAGES.index(origin), (
                f"{file}: {origin} imports the later {target}"
            )


def test_the_model_knows_only_the_batch_of_tokens() -> None:
    for file in (ROOT / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alhena.tokens"):
                assert node.module == "alhena.tokens.batch", file.name


def test_an_arrow_the_wrong_way_would_be_seen() -> None:
    assert ("serve", "model") in {(origin, target) for origin, target, _ in arrows()}
