"""What a replica counts, for Prometheus: served on the replica's own port, because a load balancer reaches only one.

Labels are plan, model, route, status (and an error's code): bounded by the catalogue, never a key or an account.
Counting is an addition to a number in a dictionary; prometheus_client comes in when somebody asks for them. Its own
counters cost a request several times as much.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway_serving.contract.units import MICRO

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BOUNDS: Final = (*(str(bound) for bound in _SECONDS), "+Inf")


def _stop(server: WSGIServer) -> None:
    server.shutdown()
    server.server_close()


class Count:
    """One number for each set of label values. `per` turns what is counted into what is shown."""

    def __init__(self, name: str, doc: str, labels: tuple[str, ...], per: int = 1, gauge: bool = False) -> None:
        self.values: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._what = (name, doc)
        self._labels = labels
        self._per = per
        self._gauge = gauge

    def collect(self) -> Metric:
        family = (GaugeMetricFamily if self._gauge else CounterMetricFamily)(*self._what, labels=self._labels)
        for labels, value in self.values.copy().items():
            family.add_metric(labels, value / self._per)
        return family


class Durations:
    """How many took how long, for each set of label values."""

    def __init__(self, name: str, doc: str, labels: tuple[str, ...]) -> None:
        self._values: dict[tuple[str, ...], list[float]] = {}  # the last one is the sum
        self._what = (name, doc)
        self._labels = labels

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        row = self._values.get(labels)
        if row is None:
            row = self._values[labels] = [0.0] * (len(_BOUNDS) + 1)
        row[bisect_left(_SECONDS, seconds)] += 1
        row[-1] += seconds

    def collect(self) -> Metric:
        family = HistogramMetricFamily(*self._what, labels=self._labels)
        for labels, row in self._values.copy().items():
            *counts, total = row.copy()
            below, buckets = 0.0, []
            for bound, count in zip(_BOUNDS, counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(labels, buckets, total)
        return family


class Metrics(Collector):
    """One set for one gateway, with a registry of its own."""

    def __init__(self, in_progress: Callable[[], int] = lambda: 0) -> None:
        who = ("plan", "model", "route")
        self._requests = Count("tollway_requests", "Answered requests.", (*who, "status"))
        self._errors = Count("tollway_errors", "Answers with an error.", (*who, "code"))
        self._seconds = Durations(
            "tollway_request_seconds", "From the request's head to the answer's last byte.", ("model", "route")
        )
        self._first = Durations(
            "tollway_first_token_seconds", "From the request's head to the first token.", ("model", "route")
        )
        self._tokens = Count("tollway_tokens", "Tokens that were charged for.", ("plan", "model", "kind"))
        self._charged = Count("tollway_credits_charged", "Credits charged.", ("plan", "model"), MICRO)
        self._overrun = Count(
            "tollway_credits_overrun",
            "Credits used beyond the hold: recorded, not charged.",
            ("plan", "model"),
            MICRO,
        )
        self._held = Count(
            "tollway_credits_held", "Credits held by calls in progress here.", ("plan",), MICRO, gauge=True
        )
        self._limits = Count("tollway_limits_hit", "Requests refused by a limit.", ("plan", "limit"))
        self._fallbacks = Count(
            "tollway_fallbacks", "Times that another model was tried.", ("model", "fallback", "reason")
        )
        self._revision = Count("tollway_catalogue_revision", "The catalogue revision loaded here.", (), gauge=True)
        self._in_progress = Count("tollway_requests_in_progress", "Requests in progress here.", (), gauge=True)
        self._ask_in_progress = in_progress
        self._retries = Count("tollway_settle_retries", "Settlements that had to be sent again.", ())
        self._retries.values[()] = self._revision.values[()] = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._server: WSGIServer | None = None

    def collect(self) -> Iterator[Metric]:
        """In the server's thread, while requests go on."""
        self._in_progress.values[()] = self._ask_in_progress()
        for metric in vars(self).values():
            if isinstance(metric, Count | Durations):
                yield metric.collect()

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
        self._requests.values[plan, model, route, str(status)] += 1
        if code is not None:
            self._errors.values[plan, model, route, code] += 1
        self._seconds.add((model, route), seconds)

    def first_token(self, model: str, route: str, seconds: float) -> None:
        self._first.add((model, route), seconds)

    def held(self, plan: str, micro: int) -> None:
        """Adds to the gauge; a negative number when a hold ends."""
        self._held.values[plan,] += micro

    def charged(self, plan: str, model: str, charged: int, overrun: int, tokens_in: int, tokens_out: int) -> None:
        if charged:
            self._charged.values[plan, model] += charged
        if overrun:
            self._overrun.values[plan, model] += overrun
        if tokens_in:
            self._tokens.values[plan, model, "input"] += tokens_in
        if tokens_out:
            self._tokens.values[plan, model, "output"] += tokens_out

    def limit_hit(self, plan: str, limit: str) -> None:
        self._limits.values[plan, limit] += 1

    def fallback(self, model: str, fallback: str, reason: str) -> None:
        self._fallbacks.values[model, fallback, reason] += 1

    def retried(self) -> None:
        self._retries.values[()] += 1

    def loaded(self, revision: int) -> None:
        self._revision.values[()] = revision
