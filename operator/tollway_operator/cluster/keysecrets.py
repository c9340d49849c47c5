"""The Secrets that hold generated keys: made, repaired, rotated and deleted for `objects`.

A Secret is the only copy of its key. It is created by POST, with label and owner in the same request, so that an
operator killed at any moment leaves nothing that it would not recognise. Apply repairs labels, owner and address, and
never carries a key. Adopted is only what names the ApiKey as owner, or what we made and somebody took the owner off.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tollway_operator.cluster.api import MANAGER, AlreadyExists, Api, Object
from tollway_operator.cluster.cache import Cache, Entry
from tollway_operator.cluster.secrets import SECRETS, encode, to_view
from tollway_operator.errors import Conflict, Gone, NotOurs
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe, generate
from tollway_operator.ports import Raw, SecretView

MAKER = f"{MANAGER}-keys"
"""The field manager of key data: another one than apply's, which would own (and prune) what it doesn't send."""

_LONGEST_LABEL = 63


class KeySecrets:
    """Writes through to the cache, so that the next pass sees what this one did. `news` is called whenever the cache
    learnt something by that: to the watch, which comes later, it is none any more."""

    def __init__(
        self,
        api: Api,
        cache: Cache[SecretView],
        api_version: str,
        labels: Mapping[str, str],
        news: Callable[[], None],
    ) -> None:
        self._api = api
        self._cache = cache
        self._news = news
        self._api_version = api_version
        self._labels = {**labels, MANAGED_BY: "tollway"}

    async def ensure(self, owner: Raw, name: str, base_url: str) -> None:
        known = self._cache.by_name(owner.namespace, name)
        if known is not None and self._is_right(known.value, owner, base_url):
            return
        path = SECRETS.format(owner.namespace)
        if known is None:
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, **self._metadata(owner)},
                "type": "Opaque",
                "data": {KEY_FIELD: encode(generate()), URL_FIELD: encode(base_url)},
            }
            try:
                self._remember(await self._api.create(path, body, manager=MAKER))
            except AlreadyExists:
                pass
            else:
                return
        path = f"{path}/{name}"
        found = await self._ours(path, owner, name)
        if KEY_FIELD not in (found.get("data") or {}):
            found = await self._put_key(path, found)
        if not self._is_right(to_view(found), owner, base_url):
            found = await self._api.apply(
                path,
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "uid": found["metadata"]["uid"], **self._metadata(owner)},
                    "data": {URL_FIELD: encode(base_url)},
                },
            )
        self._remember(found)

    async def rotate(self, owner: Raw, name: str) -> None:
        """NotOurs or Gone as `ensure`; Conflict if somebody changed it in the same moment."""
        path = f"{SECRETS.format(owner.namespace)}/{name}"
        self._remember(await self._put_key(path, await self._ours(path, owner, name)))

    async def delete(self, namespace: str, name: str, uid: str) -> None:
        """Only ours; what is gone already is well."""
        path = f"{SECRETS.format(namespace)}/{name}"
        try:
            found = await self._api.get(path)
            if found["metadata"]["uid"] != uid or OWNER_LABEL not in (found["metadata"].get("labels") or {}):
                raise NotOurs(f"Secret {namespace}/{name} is not the one that Tollway made.")
            await self._api.delete(path, uid)
        except Gone:
            pass
        known = self._cache.by_uid(uid)
        if known is not None:
            self._cache.drop(uid, known.version)

    async def _ours(self, path: str, owner: Raw, name: str) -> Object:
        """The Secret as it is now. Gone; NotOurs if it is somebody else's; Conflict while the garbage collector has
        yet to take that of a deleted ApiKey of the same name."""
        found = await self._api.get(path)
        meta = found["metadata"]
        owners = meta.get("ownerReferences") or ()
        if any(item["uid"] == owner.uid for item in owners):
            return found
        if not owners and any(entry.get("manager") in (MAKER, MANAGER) for entry in meta.get("managedFields") or ()):
            return found
        namesake = any((item["kind"], item["name"]) == ("ApiKey", owner.name) for item in owners)
        if namesake and OWNER_LABEL in (meta.get("labels") or {}):
            raise Conflict(f"Secret {owner.namespace}/{name} belongs to a deleted ApiKey of that name; it goes soon.")
        raise NotOurs(
            f"Secret {owner.namespace}/{name} exists and is not Tollway's: delete it, or set another spec.secretName, "
            "or name it in spec.secretRef to use its key."
        )

    async def _put_key(self, path: str, found: Object) -> Object:
        body = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "data": {KEY_FIELD: encode(generate())},
        }
        return await self._api.merge(path, body, manager=MAKER)

    def _metadata(self, owner: Raw) -> dict[str, Any]:
        return {
            "labels": {**self._labels, OWNER_LABEL: owner.name[:_LONGEST_LABEL]},
            "ownerReferences": [
                {
                    "apiVersion": self._api_version,
                    "kind": owner.kind,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,  # true would need rights on finalizers on some clusters
                }
            ],
        }

    def _is_right(self, view: SecretView, owner: Raw, base_url: str) -> bool:
        labels = self._metadata(owner)["labels"]
        address = view.values.get(URL_FIELD)
        return (
            view.owner_uid == owner.uid
            and labels.items() <= view.labels.items()
            and KEY_FIELD in view.values
            and address is not None
            and address.sha256 == describe(base_url).sha256
        )

    def _remember(self, body: Object) -> None:
        view = to_view(body)
        if self._cache.put(Entry(view.uid, view.namespace, view.name, int(body["metadata"]["resourceVersion"]), view)):
            self._news()
