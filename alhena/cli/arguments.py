"""Shared by all commands: the run folder, the recipe by its name, and the folder of a model."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from alhena.files import FILES, check_sealed

if TYPE_CHECKING:
    from alhena.recipe import Recipe

Folder = Annotated[Path, tyro.conf.Positional]
OptionalFolder = Annotated[Path | None, tyro.conf.Positional]
DEFAULT_RUN = Path("runs/starter")
# The model that comes with the package.
PACKAGED = Path(__file__).parent.parent / "nano"


def load_recipe(name: str) -> Recipe:
    """The recipe of ``module`` or ``module:function`` under ``recipes/``. Raises ValueError when there is none."""
    if not re.fullmatch(r"\w+(:\w+)?", name):
        raise ValueError(
            f"--recipe {name!r}: write a module of recipes/, or module:function, such as starter or starter:smoke"
        )
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(f"recipes.{module}"), function or "run")()
    except (ModuleNotFoundError, AttributeError) as error:
        # A recipe that exists and fails to import is an error of its own.
        if isinstance(error, ModuleNotFoundError) and error.name != f"recipes.{module}":
            raise
        raise ValueError(
            f"--recipe {name}: there is no such recipe (recipes/{module}.py with a function {function or 'run'}())"
        ) from None


def model_folder(folder: Path, name: str) -> Path:
    """The folder of a model, given the model folder itself or a run folder and the name of one of its models.

    Raises ValueError when there is no such model, or when one of its files has changed since it was written.
    """
    for path in (folder, folder / "models" / name):
        if (path / "model.json").exists() or (path / FILES).exists():
            check_sealed(path)
            return path
    models = sorted(path.parent.name for path in folder.glob("models/*/model.json"))
    available = f"it has {', '.join(models)}" if models else "it has no models yet: make one with `alhena demo`"
    raise ValueError(f"{folder}: no model {name!r}; {available}")


def served_folder(folder: Path | None, name: str | None) -> Path:
    """The folder of the model that answers: that of the package where no folder is named, of a run the quantized one if it has one.

    Says which one it is, and of a model of full precision how to quantize it. Raises ValueError when there is no such model.
    """
    if folder is None and name is not None:
        raise ValueError(f"--name {name!r}: name the run folder too, as in {DEFAULT_RUN}")
    path = PACKAGED if folder is None else model_folder(folder, name or _default_model(folder))
    if folder is None:
        if not (PACKAGED / "model.json").exists():
            raise ValueError(f"{PACKAGED}: this package has no model in it; name a run folder or a model folder")
        check_sealed(PACKAGED)
    print(f"{path if folder else 'the small model of this package, alhena-nano,'} answers", file=sys.stderr)
    if folder is not None and not _is_quantized(path):
        advice = f"`alhena compress {folder} --name SMALL` makes a 4-bit one, which is smaller and faster"
        print(f"its weights are of full precision; {advice}", file=sys.stderr)
    return path


def _default_model(run: Path) -> str:
    """The model of a run that answers: the quantized one if there is one."""
    return "nano" if (run / "models" / "nano" / "model.json").exists() else "assistant"


def _is_quantized(folder: Path) -> bool:
    from alhena.model.storage.folders import base_of, is_adapter, is_quantized

    return is_quantized(base_of(folder) if is_adapter(folder) else folder)


def check_name(name: str, base: Path) -> None:
    """Raises ValueError when ``name`` cannot be that of a new model beside ``base``."""
    from alhena.pipeline import ASSISTANT, BASE, NANO

    reserved = (BASE, ASSISTANT, NANO, base.name)
    if not re.fullmatch(r"[\w-]+", name) or name in reserved:
        raise ValueError(
            f"--name {name!r}: give the new model a name of its own, of letters, digits and dashes "
            f"(not {', '.join(dict.fromkeys(reserved))})"
        )


@dataclass(frozen=True)
class StageCommand:
    """Arguments of a command that writes in a run folder."""

    folder: Folder = DEFAULT_RUN  # the run folder: every stage reads and writes in it
    recipe: str = "starter"  # the settings of the run: a module under recipes/, or module:function

    @contextmanager
    def open_run(self, create: bool = False, lock: bool = True) -> Iterator[Recipe]:
        """Yields the recipe while this process holds the lock of the run folder, so that no other command writes there.

        ``lock`` is False in all but one of several processes of one training. Raises ValueError when the run folder does not exist,
        unless ``create``.
        """
        from alhena.stages import locked

        run = load_recipe(self.recipe)
        if not create and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such run folder; `alhena demo` or `alhena corpus` makes one")
        with locked(self.folder, lock):
            yield run
