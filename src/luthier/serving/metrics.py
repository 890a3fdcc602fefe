"""What Prometheus reads at `/metrics`, in a registry of the server's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of one server.

    Attributes:
        requests: HTTP requests by route and status.
        turned_away: requests that found the queue full.
        gone: requests whose client went away before the end.
        prompt: tokens that were read.
        generated: tokens that were written.
        running: answers being written.
        waiting: answers waiting for a slot.
        first_token: seconds from the request to the first token.
        answer_seconds: seconds from the request to the end of an answer.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("luthier_requests", "HTTP requests", ["route", "status"], registry=registry)
        self.turned_away = Counter("luthier_requests_turned_away", "Requests that found the queue full", registry=registry)
        self.gone = Counter("luthier_requests_gone", "Requests whose client went away before the end", registry=registry)
        self.prompt = Counter("luthier_prompt_tokens", "Tokens read", registry=registry)
        self.generated = Counter("luthier_generated_tokens", "Tokens written", registry=registry)
        self.running = Gauge("luthier_answers_running", "Answers being written", registry=registry)
        self.waiting = Gauge("luthier_answers_waiting", "Answers waiting for a slot", registry=registry)
        self.first_token = Histogram(
            "luthier_first_token_seconds", "From the request to its first token", registry=registry, buckets=_SECONDS
        )
        self.answer_seconds = Histogram(
            "luthier_answer_seconds", "From the request to the end of an answer", registry=registry, buckets=_SECONDS
        )

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)
