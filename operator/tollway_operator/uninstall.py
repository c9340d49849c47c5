"""`python -m tollway_operator.uninstall NAMESPACE PLATFORM DEPLOYMENT`: the chart's pre-delete hook, in a Job.

Stops the operator, which would make them anew, then deletes the platform's Ray clusters and waits until they are gone:
while Redis and the Secrets are still there, which KubeRay needs to clean up behind them.
"""

import asyncio
import sys

from tollway_operator.builders.ray_cluster import API_VERSION, PLATFORM_LABEL
from tollway_operator.cluster import Access, Api
from tollway_operator.errors import Conflict, Gone, Unreachable

_POLL_S = 1.0
_LONGEST_S = 270.0


async def uninstall(api: Api, namespace: str, platform: str, deployment: str) -> None:
    """TimeoutError if KubeRay doesn't let them go in time."""
    async with asyncio.timeout(_LONGEST_S):
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}"
        try:
            await api.merge(path, {"spec": {"replicas": 0}})
            while ((await api.get(path)).get("status") or {}).get("replicas"):  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(_POLL_S)
        except Gone:
            pass
        print(f"{deployment} has stopped", flush=True)  # noqa: T201 - a command's output
        clusters = f"/apis/{API_VERSION}/namespaces/{namespace}/rayclusters"
        asked: set[str] = set()
        while True:
            try:
                pages = api.pages(clusters, f"{PLATFORM_LABEL}={platform}")
                left = {
                    item["metadata"]["name"]: item["metadata"]["uid"] async for page in pages for item in page.items
                }
            except Gone:
                left = {}  # KubeRay itself is gone, and everything of it
            if not left:
                return
            for name, uid in left.items():
                if uid not in asked:
                    print(f"deleting RayCluster {name}", flush=True)  # noqa: T201
                    try:
                        await api.delete(f"{clusters}/{name}", uid)
                    except (Gone, Conflict):
                        continue
                    asked.add(uid)
            await asyncio.sleep(_POLL_S)


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
