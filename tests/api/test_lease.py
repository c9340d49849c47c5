"""The Lease on a real API server: one leader at a time, taken over quickly, given up in time."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from support.control_plane import ControlPlane
from support.operator_account import Account, make_account

from tollway_operator.cluster import Access, Api
from tollway_operator.errors import Gone
from tollway_operator.lease import Lease

SECONDS = 2.0
NAME = "tollway-operator"  # the only one that the operator's rights name


@pytest.fixture
def account(control_plane: ControlPlane) -> Account:
    return make_account(control_plane)


@pytest.fixture
async def api(account: Account, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setenv("KUBECONFIG", str(account.kubeconfig))
    access = Access()
    yield Api(access.session(), access.server)
    await access.close()


class Worker:
    """What a replica would do: notes when it works; never two at once."""

    working: ClassVar[list[str]] = []

    def __init__(self, api: Api, namespace: str, name: str, seconds: float = SECONDS) -> None:
        self.name = name
        self.lease = Lease(api, namespace, NAME, name, seconds)
        self.stop = asyncio.Event()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.task = asyncio.create_task(self.lease.lead(self._work, self.stop))

    async def _work(self) -> None:
        assert not Worker.working, f"{self.name} works beside {Worker.working}"
        Worker.working.append(self.name)
        self.began.set()
        try:
            await self.stop.wait()
        finally:
            Worker.working.remove(self.name)
            self.ended.set()

    async def close(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)


def holder(plane: ControlPlane, namespace: str) -> dict[str, object]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{NAME}"
    return dict(plane.request("GET", path)["spec"])


async def test_the_next_takes_over_at_once_when_the_first_stops(
    control_plane: ControlPlane, account: Account, api: Api
) -> None:
    first = Worker(api, account.namespace, "first", 30.0)
    await asyncio.wait_for(first.began.wait(), 10)
    second = Worker(api, account.namespace, "second", SECONDS)
    await asyncio.sleep(1.0)  # time in which it must not begin
    assert not second.began.is_set()
    assert first.lease.is_held()
    assert not second.lease.is_held()
    await first.close()
    released = time.monotonic()
    await asyncio.wait_for(second.began.wait(), 10)
    assert time.monotonic() - released < 5.0  # it looks every 0.4 s; the first one's Lease was for 30 s
    spec = holder(control_plane, account.namespace)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)
    await second.close()
    assert holder(control_plane, account.namespace)["holderIdentity"] == ""


async def test_an_abandoned_lease_is_taken_after_its_duration(account: Account, api: Api) -> None:
    first = Worker(api, account.namespace, "first")
    await asyncio.wait_for(first.began.wait(), 10)
    second = Worker(api, account.namespace, "second")
    first.task.cancel()  # as a crash: nothing is released
    await asyncio.gather(first.task, return_exceptions=True)
    crashed = time.monotonic()
    await asyncio.wait_for(second.began.wait(), 20)
    assert time.monotonic() - crashed > SECONDS * 0.5, "it may have been renewed just before"
    await second.close()


async def test_a_holder_that_cannot_renew_stops_before_others_may_begin(
    control_plane: ControlPlane, account: Account, api: Api
) -> None:
    worker = Worker(api, account.namespace, "cut off")
    await asyncio.wait_for(worker.began.wait(), 10)
    control_plane.request(
        "DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{account.namespace}/rolebindings/tollway-operator"
    )
    lost = time.monotonic()
    await asyncio.wait_for(worker.ended.wait(), 10)
    assert time.monotonic() - lost < SECONDS
    assert 'cannot update resource "leases"' in worker.lease.trouble or "cannot get" in worker.lease.trouble
    assert not worker.lease.is_held()
    await worker.close()


async def test_a_foreign_edit_does_not_end_the_leadership(
    control_plane: ControlPlane, account: Account, api: Api
) -> None:
    worker = Worker(api, account.namespace, "first")
    await asyncio.wait_for(worker.began.wait(), 10)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{account.namespace}/leases/{NAME}"
    control_plane.request(
        "PATCH", path, {"metadata": {"labels": {"a": "b"}}}, content_type="application/merge-patch+json"
    )
    renewed = holder(control_plane, account.namespace)["renewTime"]
    async with asyncio.timeout(10):
        while holder(control_plane, account.namespace)["renewTime"] == renewed:  # noqa: ASYNC110 - the server's state
            await asyncio.sleep(0.05)
    control_plane.request("DELETE", path)  # nor does a deletion
    async with asyncio.timeout(10):
        while not await exists(api, path):  # noqa: ASYNC110 - the server's state
            await asyncio.sleep(0.05)
    assert not worker.ended.is_set()
    await worker.close()


async def exists(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except Gone:
        return False
    return True
