"""Alhena on a Ray cluster, one replica of the model per node or per accelerator:      python deploy/ray_serve.py MODEL [--replicas 4]

Ray Serve routes each request to the replica with the fewest running ones, and restarts replicas that are lost. MODEL is on a disk that all
nodes share. Set ALHENA_API_KEY where other machines reach the port. Uploaded files, cached contents, batches and interactions belong to
one replica, so only the methods without state (generateContent, streamGenerateContent, countTokens, embeddings, chat/completions) work
with more than one. Needs ``ray[serve]`` (not among Alhena's dependencies).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from ray import serve

from alhena.serve.gemini.server.connections import Hosts
from alhena.serve.gemini.server.settings import Settings, check_public


def builder(model: Path, settings: Settings) -> Callable[[], FastAPI]:
    """A function that loads the model where a replica starts, and compiles its programs before the first request."""

    def build() -> FastAPI:
        from alhena.serve.decoding.warm_up import keep_compiled, warm_up
        from alhena.serve.engine import Engine
        from alhena.serve.gemini.app import create_app

        keep_compiled()
        engine = Engine.load(model)
        warm_up(engine)
        return create_app(engine, engine.name, settings)

    return build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=4, help="of one replica")
    parser.add_argument("--gpus", type=float, default=0, help="of one replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--allow-host", action="append", default=[], help="a further name in the Host header of requests"
    )
    given = parser.parse_args()
    keys = tuple(filter(None, os.environ.get("ALHENA_API_KEY", "").split(",")))
    check_public(given.host, keys)
    settings = Settings(any_model=True, keys=keys, hosts=Hosts.serving(given.host, given.allow_host))
    deployment = serve.deployment(
        serve.ingress(builder(given.model, settings))(),
        num_replicas=given.replicas,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
        # More wait in the queue of the replica's own scheduler.
        max_ongoing_requests=settings.max_running,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    serve.start(http_options={"host": given.host, "port": given.port})
    serve.run(deployment.bind(), name="alhena", route_prefix="/", blocking=True)


if __name__ == "__main__":
    main()
