"""The operator's own small HTTP server: probes for the kubelet, metrics and scrape targets for Prometheus.

Made by `main`. /healthz fails if the reconcile hangs, /readyz until everything is watched and the Lease can be read;
neither depends on Ray or the ledger, whose absence is said in conditions, not by restarts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway_operator.reconcile import Progress
from tollway_serving.ledger.port import Publisher

_HANGS_AFTER = 900.0
"""Seconds without a finished pass; a pass takes one PUT to Ray (two minutes) at the longest."""


class State:
    """What the probes and metrics tell: written by `main`, read at scrape time, so nothing stale stays."""

    def __init__(self, troubles: Callable[[], Sequence[str]]) -> None:
        self.troubles = troubles
        self.leading_since: float | None = None
        self.progress = Progress()
        self.last_pass: float | None = None
        self.passes = 0
        self.failed_passes = 0

    def on_progress(self, progress: Progress) -> None:
        self.progress = progress
        self.last_pass = time.monotonic()
        self.passes += 1
        self.failed_passes += bool(progress.errors)

    @property
    def hangs(self) -> bool:
        if self.leading_since is None:
            return False
        return time.monotonic() - max(self.last_pass or 0.0, self.leading_since) > _HANGS_AFTER


class _StateCollector(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield GaugeMetricFamily(
            "tollway_operator_leading",
            "Whether this replica holds the Lease.",
            value=float(state.leading_since is not None),
        )
        yield GaugeMetricFamily(
            "tollway_operator_troubles",
            "What keeps this replica from seeing or writing.",
            value=float(len(state.troubles())),
        )
        passes = CounterMetricFamily("tollway_operator_passes", "Finished reconcile passes.", labels=("result",))
        passes.add_metric(("ok",), state.passes - state.failed_passes)
        passes.add_metric(("error",), state.failed_passes)
        yield passes
        if state.last_pass is not None:
            age = time.monotonic() - state.last_pass
            yield GaugeMetricFamily(
                "tollway_operator_last_pass_age_seconds", "Since the last finished pass.", value=age
            )
        yield self._conditions()

    def _conditions(self) -> Metric:
        counts: dict[tuple[str, str, str, str], int] = {}
        for (kind, _, _), status in self._state.progress.statuses.items():
            for condition in status.get("conditions", ()):
                key = (str(kind), condition["type"], condition["status"], condition["reason"])
                counts[key] = counts.get(key, 0) + 1
        family = GaugeMetricFamily(
            "tollway_objects",
            "Objects by condition; reasons are documented.",
            labels=("kind", "condition", "status", "reason"),
        )
        for key, count in sorted(counts.items()):
            family.add_metric(key, count)
        return family


def application(state: State, publisher: Publisher) -> web.Application:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_StateCollector(state))

    async def healthz(_: web.Request) -> web.Response:
        if state.hangs:
            return web.Response(status=503, text=f"no pass of the reconcile has ended for {_HANGS_AFTER:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        troubles = [trouble for trouble in state.troubles() if trouble]
        if troubles:
            return web.Response(status=503, text="\n".join(troubles) + "\n")
        return web.Response(text="leading\n" if state.leading_since is not None else "waiting for the Lease\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def targets(_: web.Request) -> web.Response:
        """Prometheus' HTTP service discovery: each gateway replica with a fresh heartbeat."""
        try:
            replicas = await publisher.replicas()
        except Exception:
            return web.Response(status=503, text="the ledger can't be read now\n")
        found = []
        for replica in replicas:
            url = urlsplit(replica.metrics_url)
            labels = {"__scheme__": url.scheme, "__metrics_path__": url.path or "/metrics", "replica": replica.owner}
            found.append({"targets": [url.netloc], "labels": labels})
        return web.json_response(found)

    server = web.Application()
    server.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/metrics/targets", targets),
        ]
    )
    return server
