"""Metrics of a server in the format of Prometheus: requests, queue, tokens, latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from alhena.content import Part
from alhena.serve.answer import Answer

# Seconds.
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one server; each has a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        self.requests = Counter("alhena_requests", "HTTP requests by method of the API.", ("call", "code"), registry=r)
        self.request_seconds = Histogram(
            "alhena_request_seconds", "Time to the end of the response.", ("call",), registry=r, buckets=REQUEST_BUCKETS
        )
        self.answers = Counter("alhena_answers", "Generations by how they ended.", ("finish",), registry=r)
        self.prompt_tokens = Counter("alhena_prompt_tokens", "Tokens of answered prompts.", registry=r)
        self.answer_tokens = Counter("alhena_answer_tokens", "Generated tokens, thoughts included.", registry=r)
        self.cached_tokens = Counter(
            "alhena_cached_prompt_tokens", "Tokens of prompts that an earlier prompt had left in the cache.", registry=r
        )
        self.first_token_seconds = Histogram(
            "alhena_first_token_seconds", "Time from the queue to the first part.", registry=r, buckets=FIRST_TOKEN_BUCKETS
        )  # fmt: skip
        self.inter_token_seconds = Histogram(
            "alhena_inter_token_seconds", "Mean time between two tokens of an answer.", registry=r, buckets=TOKEN_BUCKETS
        )  # fmt: skip

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is asked for at each scrape."""
        Gauge(name, help, registry=self.registry).set_function(value)

    def count(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds a counter whose value is asked for at each scrape."""
        self.registry.register(_Count(name, help, value))

    def generation(self) -> GenerationObserver:
        return GenerationObserver(self)

    def text(self) -> bytes:
        return generate_latest(self.registry)


@dataclass(frozen=True)
class _Count(Collector):
    """A counter that something else counts."""

    name: str
    help: str
    value: Callable[[], float]

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.help, value=self.value())


class GenerationObserver:
    """Called with each item of one generation, as the engine makes it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._began, self._first = metrics, time.monotonic(), 0.0

    def __call__(self, item: Part | Answer | Exception) -> None:
        now, metrics = time.monotonic(), self._metrics
        if isinstance(item, Exception):
            metrics.answers.labels("error").inc()
            return
        if not self._first:
            self._first = now
            metrics.first_token_seconds.observe(now - self._began)
        if isinstance(item, Answer):
            metrics.answers.labels(item.finish).inc()
            metrics.prompt_tokens.inc(item.prompt_tokens)
            metrics.answer_tokens.inc(item.answer_tokens)
            metrics.cached_tokens.inc(item.cached_tokens)
            if item.answer_tokens > 1:
                metrics.inter_token_seconds.observe((now - self._first) / (item.answer_tokens - 1))
