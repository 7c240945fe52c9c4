"""Whether a server is ready or draining, and the uvicorn server that drains.

    SIGTERM ─► draining: /healthz and new requests get 503, running requests continue ─► none runs, or the bound is reached ─► end

While it drains, the server still accepts connections: a proxy sees from /healthz that it must choose another replica.
A second SIGTERM, or SIGINT, ends the server at once.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType

import uvicorn

# The paths that a server answers while it drains, and that count as no running request.
PROBES = ("/healthz", "/metrics")
DRAIN_SECONDS = 30.0


@dataclass
class Health:
    """The state of a server. ``running`` is the number of requests that are being answered."""

    running: int = 0
    draining: bool = False

    @property
    def status(self) -> str:
        return "draining" if self.draining else "ready"


class DrainingServer(uvicorn.Server):
    """A uvicorn server that on SIGTERM lets running requests end, for ``drain_seconds`` at most."""

    def __init__(self, config: uvicorn.Config, health: Health, drain_seconds: float = DRAIN_SECONDS) -> None:
        super().__init__(config)
        self._health, self._drain_seconds, self._deadline = health, drain_seconds, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or self._health.draining:
            super().handle_exit(sig, frame)
            return
        # The signal is not raised again after the end, as uvicorn does: to end is what it asked for.
        self._deadline = time.monotonic() + self._drain_seconds
        self._health.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._health.draining and (not self._health.running or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)
