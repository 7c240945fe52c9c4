"""All commands of the command line, in the order of ``alhena --help``."""

from __future__ import annotations

from alhena.cli.build import Compress, Corpus, Curate, Demo, Pretrain, Tokenize
from alhena.cli.measuring import Compare, Context, Evaluate, Report
from alhena.cli.scaling import Launch, Plan, Replay, Runs, Scale
from alhena.cli.serving import Chat, Serve
from alhena.cli.tuning import Tune
from alhena.cli.weights import Check, Export, Import

Command = (
    Demo
    | Corpus
    | Curate
    | Tokenize
    | Pretrain
    | Tune
    | Compress
    | Evaluate
    | Compare
    | Context
    | Report
    | Chat
    | Serve
    | Import
    | Export
    | Check
    | Launch
    | Replay
    | Runs
    | Scale
    | Plan
)
