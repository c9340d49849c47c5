"""The `Objects` port on a real API server, with the operator's own rights, beside users who change what they like."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.control_plane import ControlPlane
from support.operator_account import Account, make_account

from tollway_operator.cluster import Access, Api, ClusterObjects, Names
from tollway_operator.cluster.objects import PLURALS
from tollway_operator.errors import Conflict, Forbidden, Gone, NotOurs, Unreachable
from tollway_operator.ports import Kind, Raw

BASE = "/apis/tollway.dev/v1alpha1/namespaces/{}/{}"
BASE_URL = "https://models.example.com/v1"


@pytest.fixture(scope="module")
def account(control_plane: ControlPlane) -> Account:
    return make_account(control_plane)


@asynccontextmanager
async def opened(
    monkeypatch: pytest.MonkeyPatch, kubeconfig: Path, own: str, namespaces: tuple[str, ...] = ()
) -> AsyncIterator[ClusterObjects]:
    """The port with its lists, without Kopf: events are given by hand where a test needs them."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    access = Access()
    objects = ClusterObjects(Api(access.session(), access.server), namespaces, Names(own))
    running = asyncio.create_task(objects.run())
    try:
        yield objects
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await access.close()


@pytest.fixture
async def objects(account: Account, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterObjects]:
    async with opened(monkeypatch, account.kubeconfig, account.namespace, (namespace,)) as port:
        await asyncio.wait_for(port.listed.wait(), 20)
        yield port


def add_key(plane: ControlPlane, namespace: str, name: str = "ci", **spec: Any) -> dict[str, Any]:
    return plane.request(
        "POST",
        BASE.format(namespace, "apikeys"),
        {
            "apiVersion": "tollway.dev/v1alpha1",
            "kind": "ApiKey",
            "metadata": {"name": name},
            "spec": {"planRef": {"name": "pro"}, **spec},
        },
    )


async def until(what: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """The first true answer."""
    async with asyncio.timeout(seconds):
        while not (answer := await what()):  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.02)
    return answer


async def the(port: ClusterObjects, kind: Kind, name: str) -> Raw:
    async def look() -> Raw | None:
        found = [raw for raw in (await port.snapshot()).objects if (raw.kind, raw.name) == (kind, name)]
        return found[0] if found else None

    port.relist()
    return await until(look)


def secret(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    return plane.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")


async def test_makes_a_key_once_and_repairs_what_is_around_it(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    owner = await the(objects, "ApiKey", "ci")
    assert owner.spec["state"] == "Active"  # the schema's default
    objects.changed.clear()
    await objects.ensure_key(owner, "ci", BASE_URL)
    assert objects.changed.is_set(), "the watch brings no news any more: nothing else would publish the key now"
    made = secret(control_plane, namespace, "ci")
    key = base64.b64decode(made["data"]["OPENAI_API_KEY"]).decode()
    assert key.startswith("sk-tw-")
    assert base64.b64decode(made["data"]["OPENAI_BASE_URL"]).decode() == BASE_URL
    assert made["metadata"]["ownerReferences"][0]["uid"] == owner.uid

    view = (await objects.snapshot()).secrets[namespace, "ci"]
    assert view.owner_uid == owner.uid
    assert view.values["OPENAI_API_KEY"].sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert (view.values["OPENAI_API_KEY"].prefix, view.values["OPENAI_API_KEY"].last_four) == (key[:10], key[-4:])
    assert key not in repr(await objects.snapshot())

    # Somebody's hand: label, owner and address go; a label of theirs stays.
    control_plane.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/secrets/ci",
        {
            "metadata": {"labels": {"tollway.dev/api-key": None, "theirs": "1"}, "ownerReferences": None},
            "data": {"OPENAI_BASE_URL": None},
        },
        content_type="application/merge-patch+json",
    )
    objects.event("Secret", "MODIFIED", secret(control_plane, namespace, "ci"))
    await objects.ensure_key(owner, "ci", BASE_URL)
    repaired = secret(control_plane, namespace, "ci")
    assert repaired["data"] == made["data"]
    assert repaired["metadata"]["ownerReferences"] == made["metadata"]["ownerReferences"]
    assert repaired["metadata"]["labels"] == {**made["metadata"]["labels"], "theirs": "1"}

    objects.changed.clear()
    await objects.ensure_key(owner, "ci", BASE_URL)
    assert not objects.changed.is_set()
    assert (
        secret(control_plane, namespace, "ci")["metadata"]["resourceVersion"] == repaired["metadata"]["resourceVersion"]
    )
    applied = [
        entry
        for entry in repaired["metadata"]["managedFields"]
        if (entry["manager"], entry["operation"]) == ("tollway", "Apply")
    ]
    assert "f:OPENAI_API_KEY" not in str(applied), "a key must never be in an apply body"


async def test_a_lost_watch_label_is_repaired_without_a_new_key(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    owner = await the(objects, "ApiKey", "ci")
    await objects.ensure_key(owner, "ci", BASE_URL)
    before = secret(control_plane, namespace, "ci")
    control_plane.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/secrets/ci",
        {"metadata": {"labels": None}},
        content_type="application/merge-patch+json",
    )
    objects.event("Secret", "DELETED", secret(control_plane, namespace, "ci"))  # what the selected watch says
    assert (namespace, "ci") not in (await objects.snapshot()).secrets
    await objects.ensure_key(owner, "ci", BASE_URL)
    after = secret(control_plane, namespace, "ci")
    assert after["data"] == before["data"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert (namespace, "ci") in (await objects.snapshot()).secrets


async def test_never_takes_a_secret_of_somebody_else(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    control_plane.request(
        "POST",
        f"/api/v1/namespaces/{namespace}/secrets",
        {
            "metadata": {"name": "ci", "labels": {"tollway.dev/api-key": "ci"}},
            "stringData": {"OPENAI_API_KEY": "theirs"},
        },
    )
    add_key(control_plane, namespace)
    owner = await the(objects, "ApiKey", "ci")
    with pytest.raises(NotOurs, match="secretRef"):
        await objects.ensure_key(owner, "ci", BASE_URL)
    with pytest.raises(NotOurs):
        await objects.rotate_key(owner, "ci")
    assert base64.b64decode(secret(control_plane, namespace, "ci")["data"]["OPENAI_API_KEY"]) == b"theirs"


async def test_rotates_and_deletes_only_its_own(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    owner = await the(objects, "ApiKey", "ci")
    await objects.ensure_key(owner, "ci", BASE_URL)
    before = secret(control_plane, namespace, "ci")
    await objects.rotate_key(owner, "ci")
    after = secret(control_plane, namespace, "ci")
    assert after["data"]["OPENAI_API_KEY"] != before["data"]["OPENAI_API_KEY"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    view = (await objects.snapshot()).secrets[namespace, "ci"]
    key = base64.b64decode(after["data"]["OPENAI_API_KEY"])
    assert view.values["OPENAI_API_KEY"].sha256 == hashlib.sha256(key).hexdigest()
    with pytest.raises(NotOurs):
        await objects.delete_key(namespace, "ci", "another-uid")
    await objects.delete_key(namespace, "ci", view.uid)
    assert (namespace, "ci") not in (await objects.snapshot()).secrets
    await objects.delete_key(namespace, "ci", view.uid)  # gone already: well


async def test_writes_a_status_only_if_it_differs_and_without_waking_itself(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    target = await the(objects, "ApiKey", "ci")
    wanted = {"observedGeneration": 1, "plan": f"{namespace}/pro", "prefix": "sk-tw-abcd"}
    objects.changed.clear()
    await objects.write_status(target, wanted)
    path = f"{BASE.format(namespace, 'apikeys')}/ci"
    stored = control_plane.request("GET", path)
    assert stored["status"] == wanted
    objects.event("ApiKey", "MODIFIED", stored)  # the write comes back
    assert not objects.changed.is_set()
    await objects.write_status(await the(objects, "ApiKey", "ci"), wanted)
    assert control_plane.request("GET", path)["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]

    # A hand-made change wakes, and is undone whole: also a field that we don't write.
    drifted = control_plane.request(
        "PATCH",
        f"{path}/status",
        {"status": {"prefix": "fake", "lastFour": "fake"}},
        content_type="application/merge-patch+json",
    )
    objects.event("ApiKey", "MODIFIED", drifted)
    assert objects.changed.is_set()
    await objects.write_status(await the(objects, "ApiKey", "ci"), wanted)
    assert control_plane.request("GET", path)["status"] == wanted

    # Written from an old state: refused, never lost.
    control_plane.request(
        "PATCH", path, {"metadata": {"labels": {"a": "b"}}}, content_type="application/merge-patch+json"
    )
    with pytest.raises(Conflict):
        await objects.write_status(target, {**wanted, "prefix": "sk-tw-new1"})
    control_plane.request("DELETE", path)
    objects.relist()

    async def gone() -> bool:
        return not any(raw.name == "ci" for raw in (await objects.snapshot()).objects)

    await until(gone)
    with pytest.raises(Gone):
        await objects.write_status(target, wanted)


async def test_lists_find_what_the_watch_missed(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    stays, goes = add_key(control_plane, namespace, "stays"), add_key(control_plane, namespace, "goes")
    await the(objects, "ApiKey", "goes")
    control_plane.request("DELETE", f"{BASE.format(namespace, 'apikeys')}/goes")
    objects.changed.clear()
    objects.relist()
    await asyncio.wait_for(objects.changed.wait(), 20)
    assert [raw.name for raw in (await objects.snapshot()).objects] == ["stays"]
    objects.event("ApiKey", "ADDED", goes)  # an old event that arrives late changes nothing
    objects.event("ApiKey", "MODIFIED", stays)
    assert [raw.name for raw in (await objects.snapshot()).objects] == ["stays"]


async def test_an_object_that_waits_for_finalizers_counts_as_deleted(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    path = f"{BASE.format(namespace, 'apikeys')}/ci"
    await the(objects, "ApiKey", "ci")
    finalizers: dict[str, Any] = {"metadata": {"finalizers": ["example.com/held"]}}
    control_plane.request("PATCH", path, finalizers, content_type="application/merge-patch+json")
    control_plane.request("DELETE", path)
    objects.event("ApiKey", "MODIFIED", control_plane.request("GET", path))
    assert not (await objects.snapshot()).objects
    finalizers["metadata"]["finalizers"] = None
    control_plane.request("PATCH", path, finalizers, content_type="application/merge-patch+json")


async def test_reads_users_secrets_that_carry_no_label(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace, secretRef={"name": "mine", "key": "KEY"})
    await the(objects, "ApiKey", "ci")
    assert (namespace, "mine") not in (await objects.snapshot()).secrets
    objects.changed.clear()
    control_plane.request(
        "POST",
        f"/api/v1/namespaces/{namespace}/secrets",
        {"metadata": {"name": "mine"}, "stringData": {"KEY": " a-key-of-the-users-own \n"}},
    )
    await asyncio.wait_for(objects.changed.wait(), 20)  # found by itself within seconds
    value = (await objects.snapshot()).secrets[namespace, "mine"].values["KEY"]
    assert value.sha256 == hashlib.sha256(b"a-key-of-the-users-own").hexdigest()
    assert (value.prefix, value.last_four) == ("", "-own")


async def test_memory_and_provider_keys(
    control_plane: ControlPlane,
    account: Account,
    namespace: str,
    objects: ClusterObjects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await objects.remember({"a": "1", "b": "2"})
    await objects.remember({"b": "3"})
    async with opened(monkeypatch, account.kubeconfig, account.namespace, (namespace,)) as later:
        assert (await later.snapshot()).memory == {"b": "3"}

    # More than one ConfigMap has room for, and what an older version kept in the first one alone.
    path = f"/api/v1/namespaces/{account.namespace}/configmaps/tollway-memory"
    old = {f"old_{number}": "x" for number in range(9)}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tollway-memory"}, "data": old}
    control_plane.apply(made, namespace=account.namespace)
    many = {f"good_{number}": "x" * 1500 for number in range(1000)}
    async with opened(monkeypatch, account.kubeconfig, account.namespace, (namespace,)) as later:
        assert (await later.snapshot()).memory == {"b": "3", **old}
        await later.remember({**old, **many})
    async with opened(monkeypatch, account.kubeconfig, account.namespace, (namespace,)) as later:
        assert (await later.snapshot()).memory == {**old, **many}
        assert 50 < len(control_plane.request("GET", path)["data"]) < 250  # an eighth
        await later.remember({})
        assert (await later.snapshot()).memory == {}
    assert "data" not in control_plane.request("GET", path)

    control_plane.request(
        "POST",
        BASE.format(namespace, "modeldeployments"),
        {
            "apiVersion": "tollway.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "far"},
            "spec": {
                "engine": {"name": "remote"},
                "remote": {"url": "https://example.com/v1", "secretRef": {"name": "provider"}},
            },
        },
    )
    control_plane.request(
        "POST",
        f"/api/v1/namespaces/{namespace}/secrets",
        {
            "metadata": {"name": "provider", "labels": {"tollway.dev/watch": "true"}},
            "stringData": {"OPENAI_API_KEY": "sk-provider-1"},
        },
    )
    await the(objects, "ModelDeployment", "far")
    await objects.snapshot()
    wanted = {"far.key": (namespace, "provider", "OPENAI_API_KEY")}

    def copied() -> dict[str, str]:
        data = secret(control_plane, account.namespace, "tollway-providers").get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    await objects.sync_provider_keys(wanted)
    assert copied() == {"far.key": "sk-provider-1"}
    changed = control_plane.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/secrets/provider",
        {"stringData": {"OPENAI_API_KEY": "sk-provider-2"}},
        content_type="application/merge-patch+json",
    )
    objects.event("Secret", "MODIFIED", changed)
    await objects.sync_provider_keys(wanted)
    assert copied() == {"far.key": "sk-provider-2"}
    await objects.sync_provider_keys({})
    assert copied() == {}


async def test_events_are_counted_instead_of_repeated(
    control_plane: ControlPlane, namespace: str, objects: ClusterObjects
) -> None:
    add_key(control_plane, namespace)
    target = await the(objects, "ApiKey", "ci")
    for _ in range(5):
        await objects.record_event(target, "Warning", "PlanNotFound", "there is no Plan pro")
    await objects.record_event(target, "Normal", "KeyMade", "x" * 3000)
    found = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
    assert sorted((event["reason"], event["type"], len(event["message"])) for event in found) == [
        ("KeyMade", "Normal", 1024),
        ("PlanNotFound", "Warning", 20),
    ]
    described = control_plane.kubectl("describe", "apikey", "ci", "-n", namespace)
    assert "PlanNotFound" in described
    assert "tollway-operator" in described


async def test_errors_say_what_is_wrong(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_plane.service_account(namespace, "nobody")
    kubeconfig = control_plane.kubeconfig_for(control_plane.token_for("nobody", namespace))
    add_key(control_plane, namespace)
    body = control_plane.request("GET", f"{BASE.format(namespace, 'apikeys')}/ci")
    async with opened(monkeypatch, kubeconfig, namespace, (namespace,)) as port:

        async def trouble() -> bool:
            return "cannot list resource" in port.trouble

        await until(trouble)
        assert "modeldeployments" in port.trouble
        assert not port.listed.is_set()
        port.event("ApiKey", "ADDED", body)
        with pytest.raises(Forbidden, match=r"cannot .* resource \"secrets\""):
            await port.ensure_key(_raws(port)[0], "ci", BASE_URL)

    control_plane.request("DELETE", f"/api/v1/namespaces/{namespace}")
    account = make_account(control_plane)
    async with opened(monkeypatch, account.kubeconfig, account.namespace, (account.namespace,)) as port:
        port.event("ApiKey", "ADDED", body)
        with pytest.raises(Gone, match=r"terminated|not found"):
            await port.ensure_key(_raws(port)[0], "ci", BASE_URL)
    dead = control_plane.folder / "dead"
    dead.write_text(account.kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:1"))
    async with opened(monkeypatch, dead, account.namespace) as port:
        with pytest.raises(Unreachable, match="can't be reached"):
            await port.remember({"a": "b"})


def _raws(port: ClusterObjects) -> list[Raw]:
    """What it has seen; a snapshot would fail where nothing may be read."""
    return [raw for cache in port._objects.values() for raw in cache.values.values()]


def test_every_kind_has_a_plural(control_plane: ControlPlane) -> None:
    served = control_plane.request("GET", "/apis/tollway.dev/v1alpha1")["resources"]
    assert {r["kind"]: r["name"] for r in served if "/" not in r["name"]} == dict(PLURALS)
