"""The catalogue's rows: read by gateways as changes since a revision, written by the publisher as a whole.

Bodies are the contract's entries as JSON. A row that goes leaves a tombstone, so that replicas hear of it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from tollway_serving.contract.catalogue import Catalogue, Entry, KeyEntry, ModelEntry, PlanEntry
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import now_ms
from tollway_serving.ledger.port import CatalogueDelta
from tollway_serving.ledger.replicas import insert_for
from tollway_serving.ledger.state import State, account_subject, encode

TOMBSTONES_MS = 30 * 86_400_000
Where = tuple[str, str]  # kind and id
_NEWEST = sa.select(schema.meta.c.value).where(schema.meta.c.name == "catalogue_revision")


class ScopeConflictError(Exception):
    """Another installation has published an entry of this id into the same database."""


def revision(connection: sa.Connection) -> int:
    return int(connection.scalar(_NEWEST) or 0)


def changes(connection: sa.Connection, since: int) -> CatalogueDelta:
    """What changed after `since`, of all installations that share the database."""
    newest = revision(connection)
    table = schema.catalogue
    wanted = sa.select(table.c.kind, table.c.id, table.c.deleted, table.c.body)
    rows = connection.execute(wanted.where(table.c.revision > since, table.c.revision <= newest)).all()
    if since == 0:
        rows = [row for row in rows if not row.deleted]
    bodies = {kind: [r.body for r in rows if r.kind == kind and not r.deleted] for kind in ("model", "plan", "key")}
    gone = {kind: tuple(r.id for r in rows if r.kind == kind and r.deleted) for kind in ("model", "plan", "key")}
    return CatalogueDelta(
        revision=newest,
        models=tuple(ModelEntry.model_validate_json(body) for body in bodies["model"]),
        plans=tuple(PlanEntry.model_validate_json(body) for body in bodies["plan"]),
        keys=tuple(KeyEntry.model_validate_json(body) for body in bodies["key"]),
        removed_models=gone["model"],
        removed_plans=gone["plan"],
        removed_keys=gone["key"],
    )


def published(connection: sa.Connection, scope: str) -> Catalogue:
    table = schema.catalogue
    rows = connection.execute(
        sa.select(table.c.kind, table.c.body).where(table.c.scope == scope, table.c.deleted == 0).order_by(table.c.id)
    ).all()
    return Catalogue(
        models=tuple(ModelEntry.model_validate_json(r.body) for r in rows if r.kind == "model"),
        plans=tuple(PlanEntry.model_validate_json(r.body) for r in rows if r.kind == "plan"),
        keys=tuple(KeyEntry.model_validate_json(r.body) for r in rows if r.kind == "key"),
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What a scope had published, as of a revision: true as long as that is the newest, as each publisher moves it."""

    revision: int
    entries: Mapping[Where, Entry]


def publish(connection: sa.Connection, scope: str, wanted: Catalogue, known: Known | None = None) -> Known:
    """Writes what differs and bumps the revision if anything did. Publishers queue on the revision's row, so that a
    reader who has seen revision n has seen all of n and nothing of n + 1. `known`, where it still holds, spares the
    reading and comparing of all rows."""
    newest = int(connection.scalar(_NEWEST.with_for_update()) or 0)
    entries = _entries(wanted)
    if known is not None and known.revision == newest:
        there = known.entries
        others = [where for where, entry in entries.items() if there.get(where) is not entry]
        differing = [where for where in others if there.get(where) != entries[where]]
        rows = _rows(connection, differing)
        gone = [where for where in there if where not in entries]
    else:
        known, differing, rows = None, list(entries), _rows(connection)
        gone = [where for where, row in rows.items() if row.scope == scope and not row.deleted and where not in entries]
    changed = []
    for where in differing:
        row = rows.get(where)
        if row is not None and not row.deleted and row.scope != scope:
            raise ScopeConflictError(f"{where[0]} {where[1]} belongs to the installation {row.scope!r}")
        body = _body(entries[where])
        if row is None or row.deleted or row.body != body:
            changed.append((where, 0, body))
    if not changed and not gone:
        return Known(newest, entries)
    now = now_ms(connection)
    written = [
        {
            "kind": where[0],
            "id": where[1],
            "scope": scope,
            "revision": newest + 1,
            "deleted": deleted,
            "changed_ms": now,
            "body": body,
        }
        for where, deleted, body in [*changed, *((where, 1, "{}") for where in gone)]
    ]
    table = schema.catalogue
    insert = insert_for(connection, table)
    update = {name: insert.excluded[name] for name in ("scope", "revision", "deleted", "changed_ms", "body")}
    connection.execute(insert.on_conflict_do_update(index_elements=["kind", "id"], set_=update), written)
    if known is None:
        connection.execute(sa.delete(table).where(table.c.deleted == 1, table.c.changed_ms < now - TOMBSTONES_MS))
        _first_keys(connection, wanted.keys, now)
    else:
        new = [entries[where] for where, *_ in changed]
        _first_keys(connection, [entry for entry in new if isinstance(entry, KeyEntry)], now)
    connection.execute(
        sa.update(schema.meta).where(schema.meta.c.name == "catalogue_revision").values(value=newest + 1)
    )
    return Known(newest + 1, entries)


def _rows(connection: sa.Connection, of: Sequence[Where] | None = None) -> dict[Where, sa.Row[Any]]:
    """All rows, or those of a few ids."""
    table = schema.catalogue
    if of is None:
        return {(row.kind, row.id): row for row in connection.execute(sa.select(table))}
    found: dict[Where, sa.Row[Any]] = {}
    for start in range(0, len(of), 500):
        some = of[start : start + 500]
        named = sa.select(table).where(table.c.id.in_([id_ for _, id_ in some]))
        found |= {(row.kind, row.id): row for row in connection.execute(named)}
    return found


def _entries(wanted: Catalogue) -> dict[Where, Entry]:
    found: dict[Where, Entry] = {
        **{("model", model.model_id): model for model in wanted.models},
        **{("plan", plan.name): plan for plan in wanted.plans},
        **{("key", key.sha256): key for key in wanted.keys},
    }
    if len(found) != len(wanted.models) + len(wanted.plans) + len(wanted.keys):
        counted = Counter(
            [
                *(f"model {model.model_id}" for model in wanted.models),
                *(f"plan {plan.name}" for plan in wanted.plans),
                *(f"key {key.sha256}" for key in wanted.keys),
            ]
        )
        raise ValueError(f"two entries for {counted.most_common(1)[0][0]}")
    return found


def _body(entry: Entry) -> str:
    """Without defaults, so that a gateway of the version before reads what doesn't use a newer field. Sorted, so that
    the same content is the same text and bumps no revision."""
    body = entry.model_dump(mode="json", exclude_defaults=True)
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def _first_keys(connection: sa.Connection, keys: Iterable[KeyEntry], now: int) -> None:
    """An account begins with its first key, and its trial with it; a later key moves neither."""
    first: dict[str, int] = {}
    for key in keys:
        name = account_subject(key.account)
        first[name] = min(first.get(name, now), key.created * 1000 or now)
    if not first:
        return
    empty = encode(State())
    insert = insert_for(connection, schema.subjects)
    rows = [{"id": name, "first_key_ms": at, "state": empty} for name, at in sorted(first.items())]
    connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]), rows)
    table = schema.subjects
    moved = sa.update(table).where(
        table.c.id == sa.bindparam("name"),
        sa.or_(table.c.first_key_ms.is_(None), table.c.first_key_ms > sa.bindparam("at")),
    )
    connection.execute(
        moved.values(first_key_ms=sa.bindparam("at")), [{"name": row["id"], "at": row["first_key_ms"]} for row in rows]
    )
