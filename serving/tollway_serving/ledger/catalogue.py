"""The catalogue's rows: read by gateways as changes since a revision, written by the publisher as a whole.

Bodies are the contract's entries as JSON. A row that goes leaves a tombstone, so that replicas hear of it.
"""

from collections.abc import Iterable

import orjson
import sqlalchemy as sa

from tollway_serving.contract.catalogue import Catalogue, Entry, KeyEntry, ModelEntry, PlanEntry
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import now_ms
from tollway_serving.ledger.port import CatalogueDelta
from tollway_serving.ledger.replicas import insert_for
from tollway_serving.ledger.state import State, account_subject, encode

TOMBSTONES_MS = 30 * 86_400_000
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


def publish(connection: sa.Connection, scope: str, wanted: Catalogue) -> int:
    """Writes what differs and bumps the revision if anything did. Publishers queue on the revision's row, so that a
    reader who has seen revision n has seen all of n and nothing of n + 1."""
    newest = int(connection.scalar(_NEWEST.with_for_update()) or 0)
    table = schema.catalogue
    bodies = _bodies(wanted)
    known = {(r.kind, r.id): r for r in connection.execute(sa.select(table))}
    for where in bodies:
        if where in known and not known[where].deleted and known[where].scope != scope:
            raise ScopeConflictError(f"{where[0]} {where[1]} belongs to the installation {known[where].scope!r}")
    changed = [
        (where, 0, body)
        for where, body in bodies.items()
        if where not in known or known[where].deleted or known[where].body != body
    ]
    gone = [
        (where, 1, "{}")
        for where, row in known.items()
        if row.scope == scope and not row.deleted and where not in bodies
    ]
    if not changed and not gone:
        return newest
    now = now_ms(connection)
    rows = [
        {
            "kind": where[0],
            "id": where[1],
            "scope": scope,
            "revision": newest + 1,
            "deleted": deleted,
            "changed_ms": now,
            "body": body,
        }
        for where, deleted, body in [*changed, *gone]
    ]
    insert = insert_for(connection, table)
    update = {name: insert.excluded[name] for name in ("scope", "revision", "deleted", "changed_ms", "body")}
    connection.execute(insert.on_conflict_do_update(index_elements=["kind", "id"], set_=update), rows)
    connection.execute(sa.delete(table).where(table.c.deleted == 1, table.c.changed_ms < now - TOMBSTONES_MS))
    _first_keys(connection, wanted.keys, now)
    connection.execute(
        sa.update(schema.meta).where(schema.meta.c.name == "catalogue_revision").values(value=newest + 1)
    )
    return newest + 1


def _bodies(wanted: Catalogue) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    named: list[tuple[tuple[str, str], Entry]] = [
        *((("model", model.model_id), model) for model in wanted.models),
        *((("plan", plan.name), plan) for plan in wanted.plans),
        *((("key", key.sha256), key) for key in wanted.keys),
    ]
    for where, entry in named:
        if where in found:
            raise ValueError(f"two entries for {where[0]} {where[1]}")
        # Without defaults, so that a gateway of the version before reads what doesn't use a newer field. Sorted, so
        # that the same content is the same text and bumps no revision.
        body = entry.model_dump(mode="json", exclude_defaults=True)
        found[where] = orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()
    return found


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
