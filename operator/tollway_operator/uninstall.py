"""`python -m tollway_operator.uninstall NAMESPACE PLATFORM DEPLOYMENT`: the chart's pre-delete hook, in a Job.

Stops the operator, which would make them anew, then deletes the platform's Ray clusters and waits until they are gone:
while Redis and the Secrets are still there, which KubeRay needs to clean up behind them. Their pods would wait up to an
hour for requests that can't come any more: they get a few seconds.
"""

import asyncio
import contextlib
import sys
import time

from tollway_operator.builders.ray_cluster import API_VERSION, PLATFORM_LABEL
from tollway_operator.cluster import Access, Api
from tollway_operator.errors import Conflict, Gone, Unreachable

_POLL_S = 1.0
_LONGEST_S = 270.0
_GRACE_S = 10  # what a request in progress still gets
# A pod that was ending before keeps its hook, whatever grace it is given now, and that waits a minute for its head
# (`tollway_serving.drain`). One that takes longer is its node's affair.
_PODS_S = 80.0


async def uninstall(api: Api, namespace: str, platform: str, deployment: str) -> None:
    """TimeoutError if KubeRay doesn't let them go in time."""
    clusters = f"/apis/{API_VERSION}/namespaces/{namespace}/rayclusters"
    pods = f"/api/v1/namespaces/{namespace}/pods"
    ours = f"{PLATFORM_LABEL}={platform}"
    nodes = f"{ours},ray.io/node-type in (head,worker)"  # not KubeRay's own clean-up
    async with asyncio.timeout(_LONGEST_S):
        await _stop(api, f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
        print(f"{deployment} has stopped", flush=True)  # noqa: T201 - a command's output
        asked: set[str] = set()
        since = time.monotonic()
        latest = since + _LONGEST_S - _PODS_S / 2  # the clusters are what must be gone
        while True:
            left = await _left(api, clusters, ours)
            for name, uid in left.items():
                if uid not in asked:
                    print(f"deleting RayCluster {name}", flush=True)  # noqa: T201
                    with contextlib.suppress(Gone, Conflict):
                        await api.delete(f"{clusters}/{name}", uid)
                        asked.add(uid)
            ending = await _left(api, pods, nodes)
            for name, uid in ending.items():
                if uid not in asked:
                    asked.add(uid)
                    with contextlib.suppress(Gone, Conflict):
                        await api.delete(f"{pods}/{name}", uid, grace_s=_GRACE_S)
            if left:
                since = time.monotonic()
            elif not ending:
                return
            elif time.monotonic() > min(since + _PODS_S, latest):
                print(f"still ending: {', '.join(sorted(ending))}", flush=True)  # noqa: T201
                return
            await asyncio.sleep(_POLL_S)


async def _stop(api: Api, path: str) -> None:
    with contextlib.suppress(Gone):
        await api.merge(path, {"spec": {"replicas": 0}})
        while ((await api.get(path)).get("status") or {}).get("replicas"):  # noqa: ASYNC110 - another program's state
            await asyncio.sleep(_POLL_S)


async def _left(api: Api, path: str, selector: str) -> dict[str, str]:
    """Names and uids; nothing where the very kind is gone, with KubeRay."""
    try:
        return {
            item["metadata"]["name"]: item["metadata"]["uid"]
            async for page in api.pages(path, selector)
            for item in page.items
        }
    except Gone:
        return {}


async def _main(namespace: str, platform: str, deployment: str) -> int:
    access = Access()
    try:
        await uninstall(Api(access.session(), access.server), namespace, platform, deployment)
    except (TimeoutError, Unreachable) as error:
        print(f"not uninstalled: {error or 'the Ray clusters are still there'}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        await access.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(*sys.argv[1:4])))
