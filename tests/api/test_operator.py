"""The whole operator as a process, on a real API server with nothing but its own rights, and a real SQLite ledger."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.control_plane import ControlPlane
from support.operator_world import World, world


@pytest.fixture
async def here(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with world(control_plane, tmp_path) as made:
        yield made


async def test_from_three_objects_to_a_usable_key_and_back(control_plane: ControlPlane, here: World) -> None:
    operator = here.operator()
    await operator.until_leading()
    await here.plan(credits={"monthly": "5"})
    await here.model("small")
    await here.key("ci")
    await here.until_usable("ci")
    await here.until_condition("ModelDeployment", "small", "Ready", "Ready")
    await here.until_condition("Plan", "pro", "Ready", "Published")
    await here.until_condition("ApiKey", "ci", "Ready", "Active")
    owner = (await here.get(here.path("ApiKey", "ci")))["metadata"]  # type: ignore[index]
    made = (await here.get(here.secret_path("ci")))["metadata"]  # type: ignore[index]
    assert made["ownerReferences"][0]["uid"] == owner["uid"]
    assert "finalizers" not in owner
    assert not owner.get("annotations")
    assert set(here.ray.configs) == {"gateway", f"model-{here.namespace}.small"}

    def shown(kind: str) -> dict[str, str]:
        header, row = control_plane.kubectl("get", kind, "-n", here.namespace).splitlines()
        starts = [header.index(word) for word in header.split()] + [999]
        return {header[a:b].strip(): row[a:b].strip() for a, b in itertools.pairwise(starts)}

    model, plan, key = shown("md"), shown("plans"), shown("ak")
    assert (model["MODEL"], model["ENGINE"], model["READY"], model["REASON"]) == ("small", "llamacpp", "True", "Ready")
    assert (model["REPLICAS"], model["WANTED"]) == ("1", "1")
    assert (plan["TIER"], plan["CREDITS"], plan["MODELS"]) == ("Paid", "5", "1")
    assert (plan["KEYS"], plan["READY"]) == ("1", "True")
    assert (key["PLAN"], key["READY"], key["REASON"]) == (f"{here.namespace}/pro", "True", "Active")
    assert key["KEY"].startswith("sk-tw-")

    await here.delete(here.path("ApiKey", "ci"))
    await here.until(lambda: _is_empty(here.published("ci")), "the key withdrawn", 5)
    await here.until(lambda: _is_none(here.get(here.secret_path("ci"))), "the Secret collected with its ApiKey")
    assert await operator.stop() == 0


async def test_a_model_is_withdrawn_before_its_application_goes(here: World) -> None:
    await here.operator().until_leading()
    await here.plan()
    await here.model("small")
    await here.model("other")
    app = f"model-{here.namespace}.small"
    await here.until_condition("ModelDeployment", "small", "Ready", "Ready")
    await here.until_condition("ModelDeployment", "other", "Ready", "Ready")
    await here.delete(here.path("ModelDeployment", "small"))

    async def withdrawn() -> bool:
        return [model.model_id for model in (await here.catalogue()).models] == ["other"]

    await here.until(withdrawn, "the model withdrawn", 5)
    assert app in here.ray.configs, "its requests in flight must be able to end"
    await here.until(lambda: _is_true(app not in here.ray.configs), "the application removed")
    assert f"model-{here.namespace}.other" in here.ray.configs


async def test_what_somebody_changes_is_repaired(here: World) -> None:
    await here.operator().until_leading()
    await here.plan()
    await here.model("small")
    await here.key("ci")
    before = await here.until_usable("ci")
    await here.until_condition("ModelDeployment", "small", "Ready", "Ready")
    wanted = (await here.get(here.secret_path("ci")))["metadata"]["labels"]  # type: ignore[index]

    # A label taken off: the Secret leaves the operator's watch, and must come back with the same key.
    for labels in ({"tollway.dev/api-key": None}, {"tollway.dev/watch": None}, dict.fromkeys(wanted)):
        await here.patch(here.secret_path("ci"), {"metadata": {"labels": labels}})

        async def labelled() -> bool:
            found = await here.get(here.secret_path("ci"))
            return found is not None and found["metadata"].get("labels") == wanted

        await here.until(labelled, f"the labels repaired after {labels}")
    assert await here.until_usable("ci") == before

    await here.patch(here.secret_path("ci"), {"metadata": {"ownerReferences": None}})

    async def owned() -> bool:
        found = await here.get(here.secret_path("ci"))
        return bool(found and found["metadata"].get("ownerReferences"))

    await here.until(owned, "the owner repaired")

    status = f"{here.path('ApiKey', 'ci')}/status"
    await here.patch(status, {"status": {"prefix": "fake", "account": "somebody/else", "conditions": []}})

    async def honest() -> bool:
        found = (await here.get(here.path("ApiKey", "ci")) or {})["status"]
        right = found["prefix"].startswith("sk-tw-") and found["account"] == f"{here.namespace}/ci"
        return right and len(found["conditions"]) == 3

    await here.until(honest, "the status repaired")

    # The key deleted: another one takes its place, and the old one lives on for the overlap.
    await here.delete(here.secret_path("ci"))

    async def replaced() -> bool:
        fresh = await here.key_hash("ci")
        return fresh not in (None, before) and await here.published("ci") == {fresh, before}

    await here.until(replaced, "a fresh key beside the old one")

    here.ray.forget()  # a lost head
    await here.until(lambda: _is_true(len(here.ray.configs) == 2), "the applications put again")


async def test_killed_at_any_moment_it_converges(here: World) -> None:
    """Every start makes some of its changes, is killed at a random moment, and the next one finds what it left."""
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    await here.plan()
    await here.model("small")
    hashes: dict[str, set[str]] = {}
    names: list[str] = []
    deleted: set[str] = set()

    async def note() -> None:
        for name in names:
            value = await here.key_hash(name)
            if value:
                hashes.setdefault(name, set()).add(value)

    for round_ in range(5):
        operator = here.operator(TOLLWAY_IDENTITY="same-pod")
        if round_ and chance.random() < 0.8:
            await operator.until("/readyz", "leading")  # at once: it is the same pod's Lease
        for number in range(4):
            names.append(f"key-{round_}-{number}")
            await here.key(names[-1])
        if round_ and chance.random() < 0.7:
            gone = chance.choice([name for name in names if name not in deleted])
            deleted.add(gone)
            await here.delete(here.path("ApiKey", gone))
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        operator.kill()
        await note()
    await here.operator(TOLLWAY_IDENTITY="same-pod").until_leading()
    for name in names:
        if name not in deleted:
            hashes.setdefault(name, set()).add(await here.until_usable(name))
            await here.until_condition("ApiKey", name, "Ready", "Active")
    await here.until_condition("ModelDeployment", "small", "Ready", "Ready")
    for name in deleted:
        await here.until(lambda name=name: _is_empty(here.published(name)), f"{name} withdrawn")  # type: ignore[misc]
    twice = {name: values for name, values in hashes.items() if len(values) != 1}
    assert not twice, f"seed {seed}: a key was replaced: {twice}"


async def test_an_operator_that_is_away_blocks_nothing(here: World) -> None:
    first = here.operator()
    await first.until_leading()
    await here.plan()
    await here.model("small")
    await here.key("goes")
    await here.key("stays")
    await here.until_usable("goes")
    await here.until_usable("stays")
    await here.until_condition("ModelDeployment", "small", "Ready", "Ready")
    first.kill()
    started = time.monotonic()
    await asyncio.to_thread(
        here.plane.kubectl, "delete", "apikey/goes", "modeldeployment/small", "-n", here.namespace, "--timeout=20s"
    )
    assert time.monotonic() - started < 15, "kubectl waits until they are really gone"
    assert await here.published("goes"), "nobody could withdraw it yet"
    await here.operator().until_leading()
    await here.until(lambda: _is_empty(here.published("goes")), "the key withdrawn")
    await here.until(lambda: _is_true(set(here.ray.configs) == {"gateway"}), "the application removed")
    await here.until_usable("stays")


@pytest.mark.parametrize("mode", ["slow", "error", "refuse", "away"])
async def test_keys_do_not_wait_for_a_ray_that_misbehaves(here: World, mode: str) -> None:
    url = here.ray.url
    if mode == "away":
        here.ray.url = "http://127.0.0.1:1"
    else:
        here.ray.mode = mode  # type: ignore[assignment]
    operator = here.operator()
    await operator.until_leading()
    await here.plan()
    await here.model("small")
    await here.key("ci")
    await here.until_usable("ci", 10)
    await here.delete(here.path("ApiKey", "ci"))
    await here.until(lambda: _is_empty(here.published("ci")), "the key withdrawn", 5)
    assert operator.get("/readyz")[0] == 200
    reason = {"refuse": "Starting"}.get(mode, "Unreachable")
    if mode != "refuse":
        message = await here.until_condition("ModelDeployment", "small", "Ready", reason)
        assert "answer" in message
    here.ray.mode, here.ray.url = "ok", url
    if mode in ("error", "refuse"):
        await here.until_condition("ModelDeployment", "small", "Ready", "Ready", 60)


async def test_a_ledger_that_is_away_is_said_in_conditions(here: World) -> None:
    operator = here.operator(database="postgresql://nobody:secret-word@127.0.0.1:1/tollway")
    await operator.until_leading()
    await here.plan()
    await here.key("ci")
    await here.until_condition("ApiKey", "ci", "Ready", "LedgerUnreachable")
    await here.until_condition("Plan", "pro", "Ready", "LedgerUnreachable")
    assert operator.get("/readyz")[0] == 200
    assert operator.get("/metrics/targets")[0] == 503
    assert "secret-word" not in operator.text()


async def test_two_operators_one_works_and_the_other_takes_over(here: World) -> None:
    first = here.operator()
    await first.until_leading()
    second = here.operator()
    await second.until("/readyz", "waiting for the Lease")
    await here.plan()
    await here.key("one")
    await here.until_usable("one")
    assert await first.stop() == 0
    stopped = time.monotonic()
    await second.until_leading(10)
    assert time.monotonic() - stopped < 5
    await here.key("two")
    await here.until_usable("two")

    third = here.operator()
    await third.until("/readyz", "waiting for the Lease")
    second.kill()
    await here.key("three")
    await here.until_usable("three", 20)  # the Lease is for 3 s
    await third.until_leading()


async def test_a_frozen_leader_brings_nothing_back(here: World) -> None:
    first = here.operator()
    await first.until_leading()
    await here.plan()
    await here.key("ci")
    await here.until_usable("ci")
    second = here.operator()
    await second.until("/readyz", "waiting for the Lease")
    first.freeze()
    await second.until_leading(20)
    await here.delete(here.path("ApiKey", "ci"))
    await here.until(lambda: _is_empty(here.published("ci")), "the key withdrawn")
    await here.key("new")
    await here.until_usable("new")
    first.thaw()
    await first.until("/readyz", "waiting for the Lease")
    assert not await here.published("ci")
    await here.until_usable("new")
    assert second.get("/readyz")[1] == "leading\n"


async def test_the_api_server_goes_and_comes_back(control_plane: ControlPlane, here: World) -> None:
    operator = here.operator()
    await operator.until_leading()
    await here.plan()
    await here.key("before")
    await here.key("goes")
    await here.until_usable("before")
    await here.until_usable("goes")
    control_plane.stop_program("kube-apiserver")
    try:
        await operator.until("/readyz", "Kubernetes API server")
        assert operator.get("/healthz")[0] == 200
    finally:
        await asyncio.to_thread(control_plane.start_api_server)
    await here.delete(here.path("ApiKey", "goes"))
    await here.key("after")
    await operator.until_leading(60)
    await here.until_usable("after", 60)
    await here.until(lambda: _is_empty(here.published("goes")), "the key withdrawn", 60)
    await here.until_usable("before")


async def test_every_bad_object_says_why(here: World) -> None:
    await here.operator().until_leading()
    await here.key("lonely")
    assert "pro" in await here.until_condition("ApiKey", "lonely", "Accepted", "PlanNotFound")
    described = await asyncio.to_thread(here.plane.kubectl, "describe", "apikey", "lonely", "-n", here.namespace)
    assert "PlanNotFound" in described[described.index("Events:") :]
    await here.plan()
    await here.until_usable("lonely")
    body = {"metadata": {"name": "taken"}, "stringData": {"OPENAI_API_KEY": "somebody-else-put-this-here"}}
    await asyncio.to_thread(here.plane.request, "POST", here.secret_path("").rstrip("/"), body)
    await here.key("clash", secretName="taken")
    assert "secretRef" in await here.until_condition("ApiKey", "clash", "Accepted", "SecretNotOurs")
    await here.key("import", secretRef={"name": "taken"})
    await here.until_condition("ApiKey", "import", "Ready", "Active")
    await here.model("odd", engine={"name": "perpetuum"})
    assert "llamacpp" in await here.until_condition("ModelDeployment", "odd", "Accepted", "UnknownEngine")


async def test_it_stays_in_its_namespaces(control_plane: ControlPlane, here: World) -> None:
    await here.operator().until_leading()
    elsewhere = control_plane.fresh_namespace()
    body = {
        "apiVersion": "tollway.dev/v1alpha1",
        "kind": "ApiKey",
        "metadata": {"name": "foreign"},
        "spec": {"planRef": {"name": "pro"}},
    }
    path = f"/apis/tollway.dev/v1alpha1/namespaces/{elsewhere}/apikeys"
    control_plane.request("POST", path, body)
    await here.plan()
    await here.key("ours")
    await here.until_usable("ours")
    assert "status" not in control_plane.request("GET", f"{path}/foreign")


async def _is_none(what: Any) -> bool:
    return await what is None


async def _is_empty(what: Any) -> bool:
    return not await what


async def _is_true(value: bool) -> bool:
    return value
