"""operator/rbac.yaml: with it everything works, and without any one of its rights something fails that a user would
miss, with a message that names the right. So nothing in it is needless, and nothing is missing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.control_plane import ControlPlane
from support.operator_account import Account, Right, make_account, rights
from support.operator_process import OperatorProcess
from support.serve_rest import ServeRest

from tollway_operator.cluster import Access, Api, ClusterObjects, Names
from tollway_operator.cluster.objects import GROUP, PLURALS, VERSION, list_path
from tollway_operator.errors import OperatorError
from tollway_operator.handlers import Watches
from tollway_operator.lease import Lease
from tollway_operator.ports import Kind, Raw

BASE_URL = "https://models.example.com/v1"
BAD_URL = "https://elsewhere.example.com/v1"
STATUS = {"conditions": []}
ALL = tuple(rights())


class Walk:
    """One use of each right, as the operator uses it. A step's error is what a user would read."""

    def __init__(self, plane: ControlPlane, account: Account, namespace: str, access: Access) -> None:
        self.plane, self.account, self.namespace = plane, account, namespace
        self.access = access
        self.api = Api(access.session(), access.server)
        self.objects = ClusterObjects(self.api, (namespace,), Names(account.namespace))

    def see(self) -> None:
        """What the watch would say, said by hand: lists and watches are steps of their own."""
        for kind, plural in PLURALS.items():
            for body in self.plane.request("GET", self._path(plural))["items"]:
                self.objects.event(kind, "ADDED", body)

    async def list(self) -> None:
        task = asyncio.create_task(self.objects.run())
        try:
            async with asyncio.timeout(20):
                while self.objects.trouble.startswith("The first lists"):  # noqa: ASYNC110 - tried again all the time
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self.objects.trouble:
            raise OperatorError(self.objects.trouble)

    async def watch(self, plural: str) -> None:
        watches = Watches(self.objects)
        session = self.access.session(watches.answered)
        resource = next((kind for kind, name in PLURALS.items() if name == plural), "Secret")
        path, selector = list_path(resource, self.namespace)
        params = {"watch": "true", "timeoutSeconds": "1", "labelSelector": selector}
        async with session.get(self.access.server + path, params=params) as answer:
            await answer.read()
        if watches.trouble:
            raise OperatorError(watches.trouble)

    async def write_status(self, plural: str) -> None:
        await self.objects.write_status(self._raw(plural.removesuffix("/status")), STATUS)

    async def make_key(self) -> None:
        await self.objects.ensure_key(self._raw("apikeys"), "ci", BASE_URL)

    async def adopt_key(self) -> None:
        """Reads what exists already; nothing to repair."""
        self._made()
        await self.objects.ensure_key(self._raw("apikeys"), "ci", BASE_URL)

    async def repair_key(self) -> None:
        self._made()
        await self.objects.ensure_key(self._raw("apikeys"), "ci", BAD_URL)

    async def delete_key(self) -> None:
        made = self._made()
        await self.objects.delete_key(self.namespace, "ci", made["metadata"]["uid"])

    async def say(self) -> None:
        await self.objects.record_event(self._raw("apikeys"), "Normal", "Said", "something")

    async def say_again(self) -> None:
        self.objects._events._said.clear()
        await self.say()
        for said in self.objects._events._said.values():
            said.written -= 3600  # long ago
        await self.say()

    async def lease(self, *, taken_before: bool) -> None:
        if taken_before:
            path = f"/apis/coordination.k8s.io/v1/namespaces/{self.account.namespace}/leases"
            self.plane.request("POST", path, {"metadata": {"name": "tollway-operator"}, "spec": {}})
        lease = Lease(self.api, self.account.namespace, "tollway-operator", "me", 15.0)
        if not await lease._acquire():
            raise OperatorError(lease.trouble)

    async def remember(self, *, made_before: bool) -> None:
        if made_before:
            path = f"/api/v1/namespaces/{self.account.namespace}/configmaps"
            self.plane.request("POST", path, {"metadata": {"name": "tollway-memory"}})
        await self.objects.remember({f"a_{number}": "b" for number in range(64)})  # some in each of the ConfigMaps

    async def copy_provider_keys(self, *, made_before: bool) -> None:
        path = f"/api/v1/namespaces/{self.account.namespace}/secrets"
        if made_before:
            self.plane.request("POST", path, {"metadata": {"name": "tollway-providers"}})
            self.plane.request("POST", path, {"metadata": {"name": "tollway-sources"}})
        await self.objects.sync_provider_keys({"far.key": (self.namespace, "provider", "OPENAI_API_KEY")})
        await self.objects.sync_source_keys({"far_key": (self.namespace, "provider", "OPENAI_API_KEY")})

    def _made(self) -> dict[str, dict[str, str]]:
        """The Secret as an earlier run of the operator would have made it: without this one's cache knowing it."""
        body = self._raw("apikeys")
        owner = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "ApiKey",
            "name": body.name,
            "uid": body.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        labels = {
            "tollway.dev/api-key": "ci",
            "tollway.dev/watch": "true",
            "app.kubernetes.io/managed-by": "tollway",
        }
        return self.plane.request(
            "POST",
            f"/api/v1/namespaces/{self.namespace}/secrets",
            {
                "metadata": {"name": "ci", "labels": labels, "ownerReferences": [owner]},
                "stringData": {"OPENAI_API_KEY": "k" * 30, "OPENAI_BASE_URL": BASE_URL},
            },
        )

    def _raw(self, plural: str) -> Raw:
        kind: Kind = next(kind for kind, name in PLURALS.items() if name == plural)
        return next(iter(self.objects._objects[kind].values.values()))

    def _path(self, plural: str) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{plural}"


Step = Callable[[Walk], Awaitable[None]]


def step_of(right: Right) -> Step:
    """The step that needs it. A right without one must not be in the file: KeyError."""
    own: dict[tuple[str, str], Step] = {
        ("leases", "create"): lambda walk: walk.lease(taken_before=False),
        ("leases", "get"): lambda walk: walk.lease(taken_before=True),
        ("leases", "update"): lambda walk: walk.lease(taken_before=True),
        ("configmaps", "create"): lambda walk: walk.remember(made_before=False),
        ("configmaps", "get"): lambda walk: walk.remember(made_before=True),
        ("configmaps", "patch"): lambda walk: walk.remember(made_before=True),
        ("secrets", "create"): lambda walk: walk.copy_provider_keys(made_before=False),
        ("secrets", "get"): lambda walk: walk.copy_provider_keys(made_before=True),
        ("secrets", "patch"): lambda walk: walk.copy_provider_keys(made_before=True),
    }
    watched: dict[tuple[str, str], Step] = {
        ("secrets", "get"): lambda walk: walk.adopt_key(),
        ("secrets", "create"): lambda walk: walk.make_key(),
        ("secrets", "patch"): lambda walk: walk.repair_key(),
        ("secrets", "delete"): lambda walk: walk.delete_key(),
        ("events", "create"): lambda walk: walk.say(),
        ("events", "patch"): lambda walk: walk.say_again(),
    }
    for plural in (*PLURALS.values(), "secrets"):
        watched[plural, "list"] = lambda walk: walk.list()
        watched[plural, "watch"] = lambda walk, plural=plural: walk.watch(plural)  # type: ignore[misc]
    for plural in PLURALS.values():
        watched[f"{plural}/status", "patch"] = lambda walk, plural=plural: walk.write_status(plural)  # type: ignore[misc]
    return (own if right.role == "Role" else watched)[right.resource, right.verb]


@asynccontextmanager
async def walking(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, without: Right | None) -> AsyncIterator[Walk]:
    """With rights in one watched namespace and the operator's own, which is the least that it can run with."""
    namespace = plane.fresh_namespace()
    account = make_account(plane, without=without, watched=[namespace])
    head = {"apiVersion": f"{GROUP}/{VERSION}"}
    for kind, name, spec in (
        (
            "ModelDeployment",
            "far",
            {
                "engine": {"name": "remote"},
                "remote": {"url": "https://example.com/v1", "secretRef": {"name": "provider"}},
            },
        ),
        ("Plan", "pro", {}),
        ("ApiKey", "ci", {"planRef": {"name": "pro"}}),
    ):
        body = {**head, "kind": kind, "metadata": {"name": name}, "spec": spec}
        plane.request("POST", f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURALS[kind]}", body)  # type: ignore[index]
    provider = {"metadata": {"name": "provider"}, "stringData": {"OPENAI_API_KEY": "sk-provider-key-1"}}
    plane.request("POST", f"/api/v1/namespaces/{namespace}/secrets", provider)
    monkeypatch.setenv("KUBECONFIG", str(account.kubeconfig))
    access = Access()
    try:
        walk = Walk(plane, account, namespace, access)
        walk.see()
        yield walk
    finally:
        await access.close()


@pytest.mark.parametrize("right", ALL, ids=str)
async def test_each_right_is_needed(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, right: Right) -> None:
    step = step_of(right)
    async with walking(control_plane, monkeypatch, right) as walk:
        with pytest.raises(OperatorError) as failed:
            await step(walk)
    message = str(failed.value)
    if right.verb == "watch":
        assert right.resource in message
        assert "403" in message
    else:
        assert f'cannot {right.verb} resource "{right.resource}"' in message


async def test_all_rights_together_suffice(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    for right in ALL:
        async with walking(control_plane, monkeypatch, None) as walk:
            await step_of(right)(walk)


def test_nothing_is_granted_by_wildcard() -> None:
    assert all("*" not in (right.resource, right.verb) for right in ALL)
    assert len(ALL) == len(set(ALL))


async def test_the_operator_says_which_right_it_lacks(control_plane: ControlPlane, tmp_path: Path) -> None:
    """The whole process: it stays up, unready, names the right, and goes on by itself once it has it."""
    right = next(right for right in ALL if (right.resource, right.verb) == ("plans", "watch"))
    account = make_account(control_plane, without=right)
    async with ServeRest() as ray:
        operator = OperatorProcess(
            tmp_path,
            kubeconfig=account.kubeconfig,
            namespace=account.namespace,
            ray=ray.url,
            database=f"sqlite://{tmp_path}/ledger.db",
        ).start()
        try:
            await operator.until("/readyz", "cannot watch /apis/tollway.dev/v1alpha1/plans: the API server answers 403")
            assert operator.get("/healthz")[0] == 200
            make_account(control_plane, namespace=account.namespace)
            await operator.until_leading()
        finally:
            operator.kill()
