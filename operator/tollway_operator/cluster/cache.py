"""The newest known state of each object, fed by a watch and by lists; used by `objects`.

Kopf's watch tells of changes, but not when the first list is complete, nor what was deleted while it was disconnected.
So lists of our own run beside it, and both may be the older one: the resource version decides, which the API server
guarantees to be comparable.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

_TOMBSTONES = 10_000  # deletions remembered, against lists that began before them

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Value]):
    uid: str
    namespace: str
    name: str
    version: int
    value: Value
    names: frozenset[tuple[str, str]] = frozenset()  # namespaces and names of users' Secrets that it refers to


class Cache(Generic[Value]):
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], Value] = {}
        """By namespace and name; not to be changed."""
        self._by_uid: dict[str, Entry[Value]] = {}
        self._by_name: dict[tuple[str, str], str] = {}  # uid
        self._naming: dict[str, frozenset[tuple[str, str]]] = {}  # `names` by uid, where there are any
        self._gone: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_uid)

    def by_uid(self, uid: str) -> Entry[Value] | None:
        return self._by_uid.get(uid)

    def by_name(self, namespace: str, name: str) -> Entry[Value] | None:
        uid = self._by_name.get((namespace, name))
        return None if uid is None else self._by_uid[uid]

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """Of all entries together."""
        return frozenset().union(*self._naming.values())

    def lacks(self, uid: str, version: int) -> bool:
        """Whether that would be news: no version that isn't newer than the known one or than the object's end is."""
        known = self._by_uid.get(uid)
        return version > self._gone.get(uid, 0) and (known is None or version > known.version)

    def put(self, entry: Entry[Value]) -> bool:
        """Whether it was news; else it is ignored."""
        if not self.lacks(entry.uid, entry.version):
            return False
        same_name = self.by_name(entry.namespace, entry.name)
        if same_name is not None and same_name.uid != entry.uid:
            if same_name.version > entry.version:
                return False  # an object of that name was made after this one, which is therefore gone
            self.drop(same_name.uid, entry.version)
        self._by_uid[entry.uid] = entry
        self._by_name[entry.namespace, entry.name] = entry.uid
        self.values[entry.namespace, entry.name] = entry.value
        self._naming.pop(entry.uid, None)
        if entry.names:
            self._naming[entry.uid] = entry.names
        return True

    def drop(self, uid: str, version: int) -> bool:
        """Gone since that version, or no longer selected by its labels: then a newer one brings it back. Whether it
        was known, and not in a newer version."""
        known = self._by_uid.get(uid)
        if known is not None and known.version > version:
            return False
        self._gone[uid] = version
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)
        entry = self._by_uid.pop(uid, None)
        self._naming.pop(uid, None)
        if entry is not None and self._by_name.get((entry.namespace, entry.name)) == uid:
            del self._by_name[entry.namespace, entry.name]
            del self.values[entry.namespace, entry.name]
        return entry is not None

    def absent(self, listed: set[str], version: int, namespace: str | None) -> list[str]:
        """Uids that a complete list of that version (of one namespace, or None: of all) shows to be gone."""
        return [
            entry.uid
            for entry in self._by_uid.values()
            if entry.uid not in listed and entry.version <= version and namespace in (None, entry.namespace)
        ]
