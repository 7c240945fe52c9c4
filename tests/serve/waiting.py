"""Waiting for what happens in another thread or process, however busy the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx

SECONDS = 120.0


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def leave(url: str, body: dict[str, Any], when: Callable[[], Any]) -> None:
    """Sends a request, and closes its connection when a condition becomes true, before the response begins."""

    async def run() -> None:
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            request = asyncio.create_task(client.post(url, json=body))
            await asyncio.to_thread(wait_for, when)
            assert not request.done()
            request.cancel()
            await asyncio.wait([request])

    asyncio.run(run())
