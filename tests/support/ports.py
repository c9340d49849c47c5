"""In-memory `Objects` and `Ray` with behaviour, for tests of the reconcile: what the API server and Serve would do.

Both can be told to fail, to hang and to be changed by somebody else's hand.
"""

import asyncio
import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tollway_operator.errors import Gone, NotOurs, Refused, Unreachable
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe, generate
from tollway_operator.ports import AppStatus, Kind, Raw, RayStatus, SecretView, Snapshot
from tollway_operator.resources import Invalid, Metadata, spec_of, validate


@dataclass
class Secret:
    uid: str
    values: dict[str, str]
    owner_uid: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    created: int = 1_800_000_000


class MemoryObjects:
    """`put` and `delete` are what kubectl does. `fail` maps a method's name to the error that it raises; `hang` holds
    calls that don't answer."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.objects: dict[tuple[Kind, str, str], Raw] = {}
        self.secrets: dict[tuple[str, str], Secret] = {}
        self.memory: dict[str, str] = {}
        self.events: list[tuple[str, str, str, str]] = []
        self.providers: dict[str, tuple[str, str, str]] = {}
        self.sources: dict[str, tuple[str, str, str]] = {}
        self.complete = True
        self.fail: dict[str, Exception] = {}
        self.fail_for: dict[tuple[str, str], Exception] = {}  # by (method, object or Secret name)
        self.hang: set[tuple[str, str]] = set()  # (method, name) that don't answer before `release`
        self._released = asyncio.Event()
        self.calls: list[tuple[str, str]] = []
        self._counter = itertools.count(1)

    # kubectl

    def put(
        self,
        kind: Kind,
        full_name: str,
        spec: Mapping[str, Any] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        created: int | None = None,
        unchecked: bool = False,
    ) -> Raw:
        """Creates or replaces an object, with the schema's defaults filled in unless `unchecked`."""
        namespace, _, name = full_name.rpartition("/")
        namespace = namespace or "ml"
        filled: Mapping[str, Any] = dict(spec or {})
        if not unchecked:
            resource = validate(kind, Metadata(name=name, namespace=namespace), filled)
            assert not isinstance(resource, Invalid), resource
            filled = spec_of(resource)
        number = next(self._counter)
        old = self.objects.get((kind, namespace, name))
        raw = Raw(
            kind=kind,
            namespace=namespace,
            name=name,
            uid=old.uid if old else f"uid-{number}",
            generation=(old.generation + (old.spec != filled)) if old else 1,
            created=old.created if old else created if created is not None else 1_700_000_000 + number,
            resource_version=str(number),
            labels=dict(labels if labels is not None else old.labels if old else {}),
            spec=copy.deepcopy(filled),
            status=old.status if old else {},
        )
        self.objects[raw.key] = raw
        self.changed.set()
        return raw

    def delete(self, kind: Kind, full_name: str) -> None:
        """With the garbage collection of its Secrets."""
        namespace, _, name = full_name.rpartition("/")
        gone = self.objects.pop((kind, namespace or "ml", name))
        for place in [place for place, secret in self.secrets.items() if secret.owner_uid == gone.uid]:
            del self.secrets[place]
        self.changed.set()

    def put_secret(self, full_name: str, **values: str) -> None:
        namespace, _, name = full_name.rpartition("/")
        old = self.secrets.get((namespace or "ml", name))
        uid = old.uid if old else f"secret-{next(self._counter)}"
        self.secrets[namespace or "ml", name] = Secret(uid, dict(values))
        self.changed.set()

    def release(self) -> None:
        """Lets what hangs go on."""
        self.hang.clear()
        self._released.set()

    def status(self, kind: Kind, full_name: str) -> Mapping[str, Any]:
        namespace, _, name = full_name.rpartition("/")
        return self.objects[kind, namespace or "ml", name].status

    def condition(self, kind: Kind, full_name: str, type_: str) -> tuple[str, str, str]:
        """(status, reason, message)"""
        for condition in self.status(kind, full_name).get("conditions", ()):
            if condition["type"] == type_:
                return condition["status"], condition["reason"], condition["message"]
        raise AssertionError(f"{full_name} has no condition {type_}: {self.status(kind, full_name)}")

    # The port

    async def snapshot(self) -> Snapshot:
        await self._enter("snapshot", "")
        views = {
            (namespace, name): SecretView(
                namespace=namespace,
                name=name,
                uid=secret.uid,
                labels=dict(secret.labels),
                owner_uid=secret.owner_uid,
                created=secret.created,
                values={key: describe(value) for key, value in secret.values.items()},
            )
            for (namespace, name), secret in self.secrets.items()
        }
        return Snapshot(tuple(self.objects.values()), views, dict(self.memory), self.complete)

    async def ensure_key(self, owner: Raw, secret_name: str, base_url: str) -> None:
        await self._enter("ensure_key", secret_name)
        self._alive(owner)
        secret = self.secrets.get((owner.namespace, secret_name))
        if secret is None:
            secret = Secret(f"secret-{next(self._counter)}", {KEY_FIELD: generate()}, owner.uid)
            self.secrets[owner.namespace, secret_name] = secret
        if secret.owner_uid not in (owner.uid, None) or (secret.owner_uid is None and OWNER_LABEL not in secret.labels):
            raise NotOurs(f"Secret {owner.namespace}/{secret_name} is not ours")
        secret.owner_uid = owner.uid
        secret.labels = {OWNER_LABEL: owner.name, MANAGED_BY: "tollway"}
        secret.values.setdefault(KEY_FIELD, generate())
        secret.values[URL_FIELD] = base_url
        self.changed.set()

    async def rotate_key(self, owner: Raw, secret_name: str) -> None:
        await self._enter("rotate_key", secret_name)
        self._alive(owner)
        self.secrets[owner.namespace, secret_name].values[KEY_FIELD] = generate()
        self.changed.set()

    async def delete_key(self, namespace: str, secret_name: str, uid: str) -> None:
        await self._enter("delete_key", secret_name)
        secret = self.secrets.get((namespace, secret_name))
        if secret is not None and secret.uid == uid:
            del self.secrets[namespace, secret_name]
            self.changed.set()

    async def write_status(self, target: Raw, status: Mapping[str, Any]) -> None:
        await self._enter("write_status", target.name)
        self._alive(target)
        current = self.objects[target.key]
        self.objects[target.key] = replace(
            current, status=copy.deepcopy(dict(status)), resource_version=str(next(self._counter))
        )
        self.changed.set()  # as a watch would

    async def record_event(self, target: Raw, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        await self._enter("record_event", target.name)
        self.events.append((target.name, type_, reason, message))

    async def remember(self, memory: Mapping[str, str]) -> None:
        await self._enter("remember", "")
        self.memory = dict(memory)

    async def sync_provider_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._enter("sync_provider_keys", "")
        self.providers = dict(wanted)

    async def sync_source_keys(self, wanted: Mapping[str, tuple[str, str, str]]) -> None:
        await self._enter("sync_source_keys", "")
        self.sources = dict(wanted)

    async def _enter(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        await asyncio.sleep(0)
        if (method, name) in self.hang:
            await self._released.wait()
        if method in self.fail:
            raise self.fail[method]
        if (method, name) in self.fail_for:
            raise self.fail_for[method, name]

    def _alive(self, target: Raw) -> None:
        current = self.objects.get(target.key)
        if current is None or current.uid != target.uid:
            raise Gone(f"{target.name} is gone")


class MemoryRay:
    """Serve as the operator sees it: a config that is put is DEPLOYING in one answer and RUNNING in the next.

    `breaks` names what makes a config fail: it is given the config and answers Ray's message, or None. An application
    that had a running version keeps its replica, as max_surge_percent 100 gives.
    """

    def __init__(self) -> None:
        self.apps: dict[str, AppStatus] = {}
        self.puts: list[tuple[Mapping[str, Any], ...]] = []
        self.down = False
        self.hang = False
        self.hang_for: set[str] = set()  # applications that a set which has them new is never answered for
        self.stuck: set[str] = set()  # applications that stay DEPLOYING
        self.breaks: dict[str, str] = {}  # an application's source or argument -> the message
        self.refuses: dict[str, str] = {}  # application -> the message
        self._clock = 0.0
        self._good: dict[str, Any] = {}

    def restart(self) -> None:
        """As a new head: nothing is left."""
        self.apps.clear()
        self._good.clear()

    async def status(self) -> RayStatus:
        await self._enter()
        answer = RayStatus(dict(self.apps))
        for name, app in list(self.apps.items()):
            if app.status == "DEPLOYING" and name not in self.stuck:
                self.apps[name] = self._settle(app)
            elif app.status == "DELETING":
                del self.apps[name]
        return answer

    async def put(self, applications: tuple[Mapping[str, Any], ...]) -> None:
        await self._enter()
        if any(config["name"] in self.hang_for and config["name"] not in self.apps for config in applications):
            await asyncio.Event().wait()
        for config in applications:
            if config["name"] in self.refuses:
                raise Refused(self.refuses[config["name"]])
        self.puts.append(copy.deepcopy(applications))
        self._clock += 1.0
        wanted = {config["name"]: config for config in applications}
        for name in self.apps.keys() - wanted.keys():
            self.apps[name] = replace(self.apps[name], status="DELETING", running_replicas=0)
            self._good.pop(name, None)
        for name, config in wanted.items():
            old = self.apps.get(name)
            if old is not None and old.config == config and old.status != "DELETING":
                continue
            running = 1 if name in self._good else 0
            self.apps[name] = AppStatus(
                name, "DEPLOYING", "", copy.deepcopy(config), running, 1, {"RUNNING": running}, self._clock
            )

    async def logs(self, app: str, lines: int = 20) -> str:
        await self._enter()
        return ""

    def come_up(self, name: str) -> None:
        """Of one that is stuck."""
        self.stuck.discard(name)
        self.apps[name] = self._settle(self.apps[name])

    def state(self, name: str) -> str:
        """As Ray says it; "" of one that it doesn't have."""
        return self.apps[name].status if name in self.apps else ""

    def running(self) -> dict[str, Mapping[str, Any]]:
        return {name: app.config or {} for name, app in self.apps.items() if app.status == "RUNNING"}

    def _settle(self, app: AppStatus) -> AppStatus:
        text = str(app.config)
        message = next((words for mark, words in self.breaks.items() if mark in text), None)
        if message is not None:
            return replace(app, status="DEPLOY_FAILED", message=f"Traceback…\n{message}")
        self._good[app.name] = app.config
        return replace(app, status="RUNNING", running_replicas=1, total_replicas=1, replica_states={"RUNNING": 1})

    async def _enter(self) -> None:
        await asyncio.sleep(0)
        if self.hang:
            await asyncio.Event().wait()
        if self.down:
            raise Unreachable("the Serve REST API doesn't answer")
