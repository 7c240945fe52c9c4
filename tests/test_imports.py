"""The house's walls: imports run one way only."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "alhena"
STAGES = ["corpus", "model", "tokens", "pretrain", "align", "compress", "serve", "evaluate"]
# A stage may import those before it.
FORBIDDEN = {
    ("model", "corpus"), ("model", "pretrain"), ("align", "serve"), ("corpus", "tokens"), ("corpus", "model"),
}  # fmt: skip
ROOMS = (
    "content",
    "batch",
    "shapes",
    "artifacts",
    "media",
    "progress",
    "schema",
    "stages",
    "plots",
    "processes",
    "pools",
    "parquet",
)  # what every stage may use


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
        if origin in STAGES and target in STAGES:
            assert STAGES.index(target) < STAGES.index(origin), f"{file}: {origin} imports the later {target}"


def test_no_module_imports_one_that_imports_it() -> None:
    """At any level: an import inside a function hides a circle, it does not end it."""
    files = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file for file in ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        graph[module] = ({node.module for node in nodes if node.module} | names) & set(files)
    assert list(TopologicalSorter(graph).static_order())


def test_an_arrow_the_wrong_way_would_be_seen() -> None:
    assert ("serve", "model") in {(origin, target) for origin, target, _ in arrows()}
