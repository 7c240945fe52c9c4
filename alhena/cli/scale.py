"""Commands for trainings larger than one machine's afternoon: several processes, replays, comparisons, laws, plans."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from alhena.cli.arguments import DEFAULT, Folder, StageCommand, load_recipe


@dataclass(frozen=True)
class Launch:
    """Start a command as several processes of one training on this machine; when one is killed, start all of them again.

    alhena launch 2 -- pretrain runs/starter --recipe two_pods
    """

    processes: Annotated[int, tyro.conf.Positional]
    command: Annotated[tuple[str, ...], tyro.conf.Positional]  # what follows alhena: pretrain RUN …
    most: int = 100  # starts after losses, before it gives up
    elastic: bool = False  # go on without a process that was killed

    def __call__(self) -> None:
        from alhena.recovery.supervisor import supervise

        own = [sys.executable, "-m", "alhena.cli", *self.command, *(["--elastic"] if self.elastic else [])]
        tell = lambda text: print(f"alhena launch: {text}", file=sys.stderr, flush=True)  # noqa: E731
        ended = supervise(own, self.processes, self.most, tell, elastic=self.elastic)
        if ended.code:
            sys.exit(f"alhena: the training ended with code {ended.code} after {ended.restarts} restarts")


@dataclass(frozen=True)
class Replay(StageCommand):
    """Do pre-training steps again from a kept checkpoint and compare batch, loss, gradient norm and parameters, to the bit."""

    step: int = field(kw_only=True)  # the last step to do again

    def __call__(self) -> None:
        from alhena.pipeline import replay_base

        with self.begin() as run:
            replayed = replay_base(run, self.folder, self.step)
        if replayed.difference:
            sys.exit(f"alhena: {replayed}")
        print(replayed)


@dataclass(frozen=True)
class Check:
    """Compare every file of a run's finished stages and models with the size and hash it was written with."""

    folder: Folder = DEFAULT  # a run folder or a model folder

    def __call__(self) -> None:
        from alhena.stages import check_run

        found = check_run(self.folder)
        for folder in found.unfinished:
            print(f"{folder}: begun and not finished")
        for line in found.changes:
            print(line)
        if found.changes:
            sys.exit(
                f"alhena: {len(found.changes)} differences, {found.intact} files as they were written. Put a file back, or delete "
                "the stage.json of its stage and type the command of the stage again"
            )
        print(f"{self.folder}: {found.intact} files, all as they were written")


@dataclass(frozen=True)
class Runs:
    """List and compare trainings: steps, losses by modality, validation, goodput, early warnings."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)  # folders that hold trainings
    plot: Path | None = None  # a PNG to draw the losses by modality into

    def __call__(self) -> None:
        from rich import print as show

        from alhena.train import compare

        found = compare.find_runs(self.folders)
        show(compare.runs_table(found))
        if self.plot:
            compare.plot_losses(found, self.plot)


@dataclass(frozen=True)
class Fit(StageCommand):
    """Train a ladder of small models on a run's tokens and fit L(N, D) = E + A/N^α + B/D^β to it, with bands and a plot."""

    budgets: tuple[float, ...] = (1e12, 2e12, 4e12)  # training FLOPs of a rung
    factors: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7)  # of the recipe's widths
    batch_size: int | None = (
        None  # of a step, in place of the recipe's: fewer leave large models steps enough to learn in
    )

    def __call__(self) -> None:
        from alhena.pipeline import fit_scaling

        with self.begin() as run:
            training = run.pretrain.with_batch_size(self.batch_size) if self.batch_size else run.pretrain
            law = fit_scaling(replace(run, pretrain=training), self.folder, self.budgets, self.factors)
        print(f"{law} → {self.folder / 'scaling' / 'scaling.png'}")


@dataclass(frozen=True)
class Suggest:
    """Compute-optimal parameters and tokens for a budget, by published laws and the run's own, and a smaller member for much use."""

    folder: Annotated[Path | None, tyro.conf.Positional] = None  # a run folder with a fitted ladder
    flops: float = field(kw_only=True)  # of the whole training
    served: float = 1e13  # tokens that the member for use will read and write in its life

    def __call__(self) -> None:
        from rich import print as show

        from alhena.scaling.ladder import suggest

        show(suggest(self.flops, self.served, self.folder and self.folder / "scaling"))


@dataclass(frozen=True)
class Scale:
    """Scaling laws."""

    what: Annotated[Fit | Suggest, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        self.what()


@dataclass(frozen=True)
class Plan:
    """What pre-training a recipe needs on a machine that is not at hand: memory, time, days. For TPUs their own compiler says so.

    alhena plan ultra --on v4:16x16x16 --pods 2          alhena plan nano_2 --on h100:64
    """

    recipe: Annotated[str, tyro.conf.Positional]  # nano_1, nano_2, pro, ultra or a module of your own under recipes/
    on: str  # chip and slice: v5e:4x4, v4:8x16x16, h100:64
    pods: int = 1  # so many slices, joined by the data-centre network
    mesh: str | None = None  # such as data=4,model=4; None: the fastest that fits
    batch_size: int | None = None  # of a step, in place of the recipe's; the tokens of the whole training stay
    json: Path | None = None  # also write the plan here

    def __call__(self) -> None:
        import jax
        from rich.console import Console

        from alhena.files import write_json
        from alhena.planning import plan
        from alhena.planning.hardware import parse_machine
        from alhena.tokens.vocabulary import Vocabulary

        jax.config.update("jax_platforms", "cpu")  # nothing runs here: the machine planned for is only described
        run, where, console = load_recipe(self.recipe), parse_machine(self.on, self.pods), Console()
        c = run.model(Vocabulary(run.text_vocabulary_size, run.image_tokenizer.num_codes))
        training = run.pretrain.with_batch_size(self.batch_size) if self.batch_size else run.pretrain
        mesh = plan.read_mesh(self.mesh, where) if self.mesh else None
        found = plan.make_plan(run.name, c, training, where, mesh, console.print)
        console.print(plan.as_table(found))
        if self.json:
            write_json(self.json, plan.as_json(found))
