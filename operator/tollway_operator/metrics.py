"""The operator's metrics, read at scrape time, and Prometheus' list of gateway replicas. Served by `tollway operator`
and `tollway up`.

Labels are kind, condition and reason; never an object's name, so that the number of series is bounded.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tollway_operator.status import Judgement
from tollway_serving.ledger.port import Replica

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class OperatorMetrics(Collector):
    """What the last pass saw, so that a deleted object leaves no stale series."""

    def __init__(self) -> None:
        self._judged: tuple[Judgement, ...] = ()
        self._errors = 0
        self._failed = 0
        self._counts = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    def passed(self, seconds: float, judged: tuple[Judgement, ...], errors: tuple[str, ...]) -> None:
        self._judged = judged
        self._errors = len(errors)
        self._seconds += seconds
        self._counts[sum(1 for bound in _BUCKETS if seconds > bound)] += 1

    def failed(self) -> None:
        self._failed += 1

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is computed to register it

    def collect(self) -> Iterable[Metric]:
        conditions: Counter[tuple[str, str, str, str]] = Counter()
        kinds: Counter[str] = Counter()
        for judgement in self._judged:
            kinds[judgement.raw.kind] += 1
            for condition in judgement.status.get("conditions", ()):  # a new key has none while its Secret is made
                key = (judgement.raw.kind, condition["type"], condition["status"], condition["reason"])
                conditions[key] += 1
        objects = GaugeMetricFamily("tollway_operator_objects", "Objects by kind.", labels=["kind"])
        for kind, count in sorted(kinds.items()):
            objects.add_metric([kind], count)
        yield objects
        labels = ["kind", "condition", "status", "reason"]
        states = GaugeMetricFamily("tollway_operator_conditions", "Objects by condition and reason.", labels=labels)
        for labels_, count in sorted(conditions.items()):
            states.add_metric(list(labels_), count)
        yield states
        yield GaugeMetricFamily("tollway_operator_pending_errors", "What the last pass could not do.", self._errors)
        yield CounterMetricFamily("tollway_operator_failed_passes", "Passes that ended in an error.", self._failed)
        total, buckets = 0, []
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(
            "tollway_operator_pass_seconds", "How long passes took.", buckets=buckets, sum_value=self._seconds
        )


METRICS = OperatorMetrics()
"""This process's; one process runs one reconcile."""


def register() -> None:
    """Adds them to the process's registry. Called once by whoever serves /metrics."""
    REGISTRY.register(METRICS)


def scrape_targets(replicas: Iterable[Replica]) -> list[dict[str, Any]]:
    """The answer of Prometheus' HTTP service discovery: one target a gateway replica."""
    found = []
    for replica in sorted(replicas, key=lambda replica: replica.owner):
        url = urlsplit(replica.metrics_url)
        if url.netloc:
            labels = {"__metrics_path__": url.path or "/metrics", "__scheme__": url.scheme, "replica": replica.owner}
            found.append({"targets": [url.netloc], "labels": labels})
    return found
