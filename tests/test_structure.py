"""The structure of the code: imports run one way, files and functions stay small, and standard terms are used."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alhena"
# A folder may import folders of an earlier level, and itself. Files at the top of the package stand at the level they are listed in.
LEVELS = (
    (
        "batch",
        "content",
        "documents",
        "files",
        "media",
        "parquet",
        "plots",
        "schema",
        "pools",
        "processes",
        "progress",
        "shapes",
        "large_pages",
        "stages",
    ),
    ("corpus", "model", "recovery"),
    ("tokens",),
    ("train",),
    ("align", "planning", "scaling", "compress", "serve"),
    ("evaluate", "testing"),
    ("recipe", "pipeline", "own_data", "tuning", "compress_folder", "pytest_plugin"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
SOURCES = sorted(
    path for folder in ("alhena", "recipes", "benchmarks", "deploy", "tests") for path in (ROOT / folder).rglob("*.py")
)


def imports(file: Path) -> Iterator[str]:
    """The top-level names under ``alhena`` that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "alhena" else node.module for a in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("alhena."))


def arrows() -> set[tuple[str, str, str]]:
    """(from, to, file) of every import of one part of the package by another."""
    out = set()
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE)
        origin = path.parts[0].removesuffix(".py")
        out |= {(origin, target, str(path)) for target in imports(file) if origin not in (target, "__init__")}
    return out


def test_imports_run_one_way():
    for origin, target, file in sorted(arrows()):
        assert origin in LEVEL, f"{file}: give {origin} a level"
        assert LEVEL[target] <= LEVEL[origin], f"{file}: {origin} imports {target}, which is of a later level"
        same = LEVEL[target] == LEVEL[origin] and 0 < LEVEL[origin] < len(LEVELS) - 2
        assert not same, f"{file}: {origin} imports {target} of its own level"


def test_an_import_against_the_order_would_be_seen():
    assert ("serve", "model", "serve/engine.py") in arrows()


def test_modules_import_each_other_in_no_circle():
    """Module-level imports only: a circle of them fails or not depending on which module comes first."""
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = graph.setdefault(name, set())
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alhena"):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done and name in graph:
            for target in graph[name] - {name}:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@cache
def defined(file: Path) -> set[str]:
    """The names that a module defines or imports, at any depth of its conditions."""
    out = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            out |= {alias.asname or alias.name for alias in node.names}
    return out


@pytest.mark.parametrize("folder", ["benchmarks", "deploy"])
def test_what_other_folders_import_from_the_package_exists(folder):
    """No type checker reads them, and most benchmarks run by hand."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("alhena"):
                continue
            path = ROOT.joinpath(*node.module.split("."))
            module = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            known = defined(module) | {child.stem for child in path.glob("*")}
            missing = [alias.name for alias in node.names if alias.name not in known]
            assert not missing, f"{file.relative_to(ROOT)}:{node.lineno}: {node.module} has no {', '.join(missing)}"


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(file):
    assert len(file.read_text().splitlines()) <= 400, "more than 400 lines: split the file by concern"
    for f in functions(file):
        length = (f.end_lineno or f.lineno) - f.lineno + 1
        assert length <= 50, f"{f.name} (line {f.lineno}) has {length} lines; 50 at most"
        arguments = [
            a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ("self", "cls")
        ]
        if PACKAGE in file.parents:
            assert len(arguments) <= 6, (
                f"{f.name} (line {f.lineno}) has {len(arguments)} parameters: make a dataclass of them"
            )


def test_the_median_file_is_short():
    assert statistics.median(len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")) <= 150


# Figures of speech for which the field has a term (left), with that term.
TERMS = {
    r"\bway back\b|\bgo(es|ing)? back\b": "backward pass, or rolls back",
    r"\bslopes\b": "gradients",
    r"\bpainter\b": "image decoder",
    r"\bears\b": "audio encoder",
    r"\bknobs?\b": "hyperparameters",
    r"\btrouble\b": "anomaly",
    r"\bwish(es)?\b": "forced tokens",
    r"\bgoes on\b|\bwent on\b": "resumes, or continues",
    r"\bmatrix products?\b": "matmul",
    r"\bquantis|\btokenis|\bnormalis|\binitialis|\boptimis|\borthogonalis": "American spelling",
}


@pytest.mark.parametrize("term", TERMS, ids=lambda term: TERMS[term])
def test_standard_terms_are_used(term):
    texts = [*SOURCES, *ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "Makefile"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(term, line, re.IGNORECASE)
    ]
    assert not found, f"say {TERMS[term]}:\n" + "\n".join(found)
