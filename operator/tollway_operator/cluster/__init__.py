"""The `Objects` port over a Kubernetes API server: the only part that talks to one; `main` puts it together.

`access` finds and authenticates, `api` sends and translates errors, `cache` keeps what the watch and the lists say,
`objects` is the port itself, with `secrets` and `events` for the two kinds that are not ours.
"""

from tollway_operator.cluster.access import Access
from tollway_operator.cluster.api import Api
from tollway_operator.cluster.objects import ClusterObjects, Names

__all__ = ["Access", "Api", "ClusterObjects", "Names"]
