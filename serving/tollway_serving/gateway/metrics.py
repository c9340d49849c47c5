"""What a replica counts, for Prometheus: served on the replica's own port, because a load balancer reaches only one.

Labels are plan, model, route, status (and an error's code): bounded by the catalogue, never a key or an account.
Children are kept, since looking one up costs more than counting.
"""

import threading
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


def _stop(server: WSGIServer) -> None:
    server.shutdown()
    server.server_close()


class Metrics:
    """One set for one gateway, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("tollway_requests", "Answered requests.", ["plan", "model", "route", "status"], **made)
        self._errors = Counter("tollway_errors", "Answers with an error.", ["plan", "model", "route", "code"], **made)
        self._seconds = Histogram(
            "tollway_request_seconds", "From the request's head to the answer's last byte.", ["model", "route"],
            buckets=_SECONDS, **made,
        )  # fmt: skip
        self._first = Histogram(
            "tollway_first_token_seconds", "From the request's head to the first token.", ["model", "route"],
            buckets=_SECONDS, **made,
        )  # fmt: skip
        self._tokens = Counter("tollway_tokens", "Tokens that were charged for.", ["plan", "model", "kind"], **made)
        self._charged = Counter("tollway_credits_charged", "Credits charged.", ["plan", "model"], **made)
        self._overrun = Counter(
            "tollway_credits_overrun", "Credits used beyond the hold: recorded, not charged.", ["plan", "model"], **made
        )
        self._held = Gauge("tollway_credits_held", "Credits held by calls in progress here.", ["plan"], **made)
        self._limits = Counter("tollway_limits_hit", "Requests refused by a limit.", ["plan", "limit"], **made)
        self._fallbacks = Counter(
            "tollway_fallbacks", "Times that another model was tried.", ["model", "fallback", "reason"], **made
        )
        self.in_progress = Gauge("tollway_requests_in_progress", "Requests in progress here.", **made)
        self.revision = Gauge("tollway_catalogue_revision", "The catalogue revision loaded here.", **made)
        self.settle_retries = Counter("tollway_settle_retries", "Settlements that had to be sent again.", **made)
        self._children: dict[tuple[Any, ...], Any] = {}
        self._server: WSGIServer | None = None

    def start(self, host: str, port: int) -> int:
        """Serves /metrics in a thread; answers the port."""
        self._server, _ = start_http_server(port, host, self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """The port is given back within half a second: so long the server's thread takes to look up."""
        if self._server is not None:
            threading.Thread(target=_stop, args=(self._server,), name="metrics-stop").start()
            self._server = None

    def request(self, plan: str, model: str, route: str, status: int, code: str | None, seconds: float) -> None:
        self._child(self._requests, plan, model, route, str(status)).inc()
        if code is not None:
            self._child(self._errors, plan, model, route, code).inc()
        self._child(self._seconds, model, route).observe(seconds)

    def first_token(self, model: str, route: str, seconds: float) -> None:
        self._child(self._first, model, route).observe(seconds)

    def held(self, plan: str, micro: int) -> None:
        """Adds to the gauge; a negative number when a hold ends."""
        self._child(self._held, plan).inc(micro / 1e6)

    def charged(self, plan: str, model: str, charged: int, overrun: int, tokens_in: int, tokens_out: int) -> None:
        if charged:
            self._child(self._charged, plan, model).inc(charged / 1e6)
        if overrun:
            self._child(self._overrun, plan, model).inc(overrun / 1e6)
        if tokens_in:
            self._child(self._tokens, plan, model, "input").inc(tokens_in)
        if tokens_out:
            self._child(self._tokens, plan, model, "output").inc(tokens_out)

    def limit_hit(self, plan: str, limit: str) -> None:
        self._child(self._limits, plan, limit).inc()

    def fallback(self, model: str, fallback: str, reason: str) -> None:
        self._child(self._fallbacks, model, fallback, reason).inc()

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child
