"""What the commands of the command line have in common: a run folder, and a recipe by its name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

Folder = Annotated[Path, tyro.conf.Positional]
DEFAULT = Path("runs/starter")


def load_recipe(name: str) -> Any:
    """``starter`` or ``starter:smoke``: a function of a module under ``recipes``."""
    if not re.fullmatch(r"\w+(:\w+)?", name):
        raise ValueError(
            f"--recipe {name!r}: write a module of recipes/, or module:function, such as starter or starter:smoke"
        )
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(f"recipes.{module}"), function or "run")()
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"recipes.{module}":
            raise
        raise ValueError(
            f"--recipe {name}: there is no such recipe (recipes/{module}.py with a function {function or 'run'}())"
        ) from None


@dataclass(frozen=True)
class StageCommand:
    """Arguments of a stage of a run."""

    folder: Folder = DEFAULT  # the run folder
    recipe: str = "starter"  # module under recipes/, or module:function

    @contextmanager
    def begin(self, new: bool = False, take: bool = True) -> Iterator[Any]:
        """The recipe, while this process alone writes in the run folder, which must exist unless the command makes a ``new`` one.

        ``take`` is False in all but one of several processes of one training.
        """
        from alhena.stages import locked

        run = load_recipe(self.recipe)
        if not new and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such run folder; `alhena demo` or `alhena corpus` makes one")
        with locked(self.folder, take):
            yield run
