"""Settings of a server: further names of its model, API keys, allowed origins, limits, the folder of its state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alhena.serve.decoding.speculative.draft import DraftSource
from alhena.serve.gemini.server.connections import Access, Hosts, is_loopback
from alhena.serve.monitoring.health import DRAIN_SECONDS
from alhena.serve.safety import Classify, classify

MAX_RUNNING = 256
# One of digits alone is the name of somebody's tuned model.
MODEL_NAME = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,260}")


@dataclass(frozen=True)
class Settings:
    """``aliases`` are further names of the model; with ``any_model`` it answers to every name.

    ``keys`` empty: no key is needed. ``cors`` are the origins of web pages that may call this server. ``state`` None: the state ends
    with the server.
    """

    aliases: tuple[str, ...] = ()
    any_model: bool = False
    hosts: Hosts = field(default_factory=Hosts)
    keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    max_running: int = MAX_RUNNING
    state: Path | None = None
    # Rates texts where safetySettings ask for it; None: nothing can be blocked.
    classify: Classify | None = classify
    # Time that running requests have to end after SIGTERM.
    drain_seconds: float = DRAIN_SECONDS
    # Whether the log of requests has what users write.
    log_contents: bool = False
    # Of the key-value cache: "int8"; None: that of the model.
    cache_dtype: str | None = None
    # Proposes tokens of the answers.
    draft: DraftSource | None = None

    @property
    def access(self) -> Access:
        return Access(self.hosts, self.cors, self.keys, self.max_running)

    def __post_init__(self) -> None:
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"--cors {origin!r}: write an origin, such as https://app.example")
        for key in self.keys:
            if not re.fullmatch(r"[!-~]{1,256}", key):
                raise ValueError("--api-key: a key has 1 to 256 printable ASCII characters without spaces")


def read_aliases(values: tuple[str, ...]) -> Mapping[str, str]:
    """Aliases of the command line, ``NAME=MODEL``, as name and model. Raises ValueError.

    >>> dict(read_aliases(("gemini-2.5-flash=assistant",)))
    {'gemini-2.5-flash': 'assistant'}
    """
    out: dict[str, str] = {}
    for value in values:
        alias, _, model = value.partition("=")
        if not MODEL_NAME.fullmatch(alias) or not model:
            raise ValueError(f"--alias {value!r}: write NAME=MODEL, such as gemini-2.5-flash=assistant")
        out[alias] = model
    return out


def check_public(host: str, keys: tuple[str, ...]) -> None:
    """Raises ValueError when other machines could reach a server that demands no key."""
    if not keys and not is_loopback(host):
        raise ValueError(
            f"--host {host}: other machines reach this address, so a key is needed: "
            "--api-key KEY, or ALHENA_API_KEY in the environment"
        )
