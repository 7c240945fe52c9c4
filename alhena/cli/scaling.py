"""Commands for large trainings: launch, replay, runs, scale, plan."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from alhena.cli.arguments import StageCommand, load_recipe


@dataclass(frozen=True)
class Launch:
    """Start a command as several processes of one training on this machine; when one is killed, restart all of them.

    alhena launch 2 -- pretrain runs/starter --recipe two_pods
    """

    processes: Annotated[int, tyro.conf.Positional]  # number of processes
    command: Annotated[tuple[str, ...], tyro.conf.Positional]  # the command, without `alhena`: pretrain RUN …
    max_restarts: int = 100  # give up after this many restarts
    elastic: bool = False  # continue without a process that was killed, instead of restarting it

    def __call__(self) -> None:
        from alhena.recovery.supervisor import supervise

        if not self.command:
            raise ValueError("launch: no command to start; such as: alhena launch 2 -- pretrain RUN --recipe two_pods")

        def log(text: str) -> None:
            print(f"alhena launch: {text}", file=sys.stderr, flush=True)

        child = [sys.executable, "-m", "alhena.cli", *self.command, *(["--elastic"] if self.elastic else [])]
        outcome = supervise(child, self.processes, self.max_restarts, log, elastic=self.elastic)
        if outcome.code:
            sys.exit(f"alhena: the training ended with code {outcome.code} after {outcome.restarts} restarts")


@dataclass(frozen=True)
class Replay(StageCommand):
    """Find silent data corruption: repeat pre-training steps from a checkpoint and compare batch, loss, gradient norm,
    parameters and optimizer moments with those recorded, bit for bit."""

    step: int = field(kw_only=True)  # the last step to repeat

    def __call__(self) -> None:
        from alhena.pipeline import replay_base

        with self.open_run() as run:
            replayed = replay_base(run, self.folder, self.step)
        if replayed.difference:
            sys.exit(f"alhena: {replayed}")
        print(replayed)


@dataclass(frozen=True)
class Runs:
    """List and compare trainings: steps, losses by modality, validation loss, goodput, warnings."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)  # folders searched for trainings
    plot: Path | None = None  # also plot the losses by modality to this PNG

    def __call__(self) -> None:
        from rich import print as print_table

        from alhena.train.monitoring import compare

        runs = compare.find_runs(self.folders)
        print_table(compare.runs_table(runs))
        if self.plot:
            compare.plot_losses(runs, self.plot)


@dataclass(frozen=True)
class Fit(StageCommand):
    """Train a ladder of small models on a run's tokens, and fit the law L(N, D) = E + A/N^α + B/D^β with intervals and a plot."""

    budgets: tuple[float, ...] = (1e12, 2e12, 4e12)  # training compute of each rung, in FLOPs
    factors: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7)  # model sizes: factors on the recipe's widths
    # sequences per step, instead of the recipe's; a smaller batch gives large models more steps for the same compute
    batch_size: int | None = None

    def __call__(self) -> None:
        from alhena.pipeline import fit_scaling

        with self.open_run() as run:
            training = run.pretrain.with_batch_size(self.batch_size) if self.batch_size else run.pretrain
            law = fit_scaling(replace(run, pretrain=training), self.folder, self.budgets, self.factors)
        print(f"{law} → {self.folder / 'scaling' / 'scaling.png'}")


@dataclass(frozen=True)
class Suggest:
    """Compute-optimal parameters and tokens for a training budget, by published laws and the run's own; also a smaller
    model, trained longer, that costs less in total when it serves many tokens."""

    folder: Annotated[Path | None, tyro.conf.Positional] = None  # a run folder with a fitted ladder
    flops: float = field(kw_only=True)  # training compute, in FLOPs
    served: float = 1e13  # tokens that the smaller model will process in its lifetime

    def __call__(self) -> None:
        from rich import print as print_table

        from alhena.scaling.ladder import suggest

        print_table(suggest(self.flops, self.served, self.folder and self.folder / "scaling"))


@dataclass(frozen=True)
class Scale:
    """Scaling laws: fit one to a ladder of small models; suggest the size to train."""

    what: Annotated[Fit | Suggest, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        self.what()


@dataclass(frozen=True)
class Plan:
    """Memory and time of a recipe's pre-training on hardware that is not at hand. For TPUs their own compiler reports them.

    alhena plan ultra --on v4:16x16x16 --pods 2

    alhena plan nano_2 --on h100:64
    """

    recipe: Annotated[str, tyro.conf.Positional]  # nano_1, nano_2, pro, ultra or your own module under recipes/
    on: str  # chip and slice: v5e:4x4, v4:8x16x16, h100:64
    pods: int = 1  # number of slices, connected by the data-center network
    mesh: str | None = None  # such as data=4,model=4; the default is the fastest that fits
    batch_size: int | None = None  # sequences per step, instead of the recipe's; the training's total of tokens stays
    json: Path | None = None  # also write the plan to this file

    def __call__(self) -> None:
        import jax
        from rich.console import Console

        from alhena.files import write_json
        from alhena.planning import plan
        from alhena.planning.hardware import parse_machine
        from alhena.tokens.vocabulary import Vocabulary

        # Nothing runs on a device: the planned machine is only described.
        jax.config.update("jax_platforms", "cpu")
        run, machine, console = load_recipe(self.recipe), parse_machine(self.on, self.pods), Console()
        if run.distill is not None:
            raise ValueError(
                f"{run.name} has a teacher, which a plan does not include; plan the recipe of the student without it"
            )
        c = run.model(Vocabulary(run.text_vocabulary_size, run.image_tokenizer.num_codes))
        training = run.pretrain.with_batch_size(self.batch_size) if self.batch_size else run.pretrain
        mesh = plan.read_mesh(self.mesh, machine) if self.mesh else None
        made = plan.make_plan(run.name, c, training, machine, mesh, console.print)
        console.print(plan.as_table(made))
        if self.json:
            write_json(self.json, plan.as_json(made))
