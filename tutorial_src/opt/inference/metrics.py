"""What Prometheus can ask for at /metrics. Names begin with opt_; times are in seconds."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The server's counters. `waiting` and `running` are asked for when somebody looks."""

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = r = CollectorRegistry()
        Gauge("opt_queue_length", "Requests that wait for a place in the batch", registry=r).set_function(waiting)
        Gauge("opt_running", "Requests in the batch", registry=r).set_function(running)
        self.batch = Histogram("opt_batch_size", "Requests that a step worked on", buckets=ROWS, registry=r)
        self.step = Histogram("opt_step_seconds", "Time of a step of the whole batch", buckets=SECONDS, registry=r)
        self.prompt_tokens = Counter("opt_prompt_tokens", "Tokens read", registry=r)
        self.tokens = Counter("opt_generated_tokens", "Tokens generated; its rate is tokens/s", registry=r)
        self.latency = Histogram("opt_request_seconds", "From request to answer", buckets=SECONDS, registry=r)
        self.first = Histogram("opt_first_token_seconds", "From request to first token", buckets=SECONDS, registry=r)
        self.answered = Counter("opt_requests", "Requests answered", ["finish_reason"], registry=r)
        self.refused = Counter("opt_refused", "Requests refused", ["reason"], registry=r)
        self.left = Counter("opt_left", "Clients that went before their answer", registry=r)
        self.cache_hits = Counter("opt_cache_hits", "Answers that had been kept", registry=r)
        self.cache_misses = Counter("opt_cache_misses", "Answers that were generated and are kept now", registry=r)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
