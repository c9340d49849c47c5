"""Top-ups: credits beside the plan's monthly ones, which don't end with the month. For `tollway credits grant`."""

from dataclasses import dataclass

import sqlalchemy as sa

from tollway_serving.ledger import schema
from tollway_serving.ledger.admit import MOST_MICRO
from tollway_serving.ledger.database import Database, now_ms
from tollway_serving.ledger.replicas import insert_for
from tollway_serving.ledger.state import State, account_subject, decode, encode
from tollway_serving.ledger.version import check_version

MAX_MICRO = 10**15
"""A milliard credits in one grant: more is a slip of the hand."""


class GrantMismatchError(Exception):
    """The account has a grant of this id, with another amount."""


@dataclass(frozen=True, slots=True)
class Granted:
    """`created` is False where the same grant was made before: nothing was added then."""

    created: bool
    granted_micro: int  # all of the account's top-ups
    left_micro: int  # of them, neither used nor held
    has_keys: bool  # False: no key was ever made for this account, perhaps its name is a slip of the hand


async def grant(url: str, account: str, micro: int, grant_id: str, note: str = "") -> Granted:
    """Adds `micro` micro-credits to `account` (NAMESPACE/ACCOUNT), once for each `grant_id`, which the caller chooses.

    Raises ValueError for an amount or a name that can't be meant, GrantMismatchError, LedgerUnavailable.
    """
    if not 0 < micro <= MAX_MICRO:
        raise ValueError(f"a grant is more than 0 and at most {MAX_MICRO // 1_000_000} credits")
    if account.count("/") != 1 or not all(account.split("/")):
        raise ValueError("an account is NAMESPACE/ACCOUNT")
    if not 0 < len(grant_id) <= 128 or len(note) > 1_000:
        raise ValueError("a grant's id has 1 to 128 characters, its note at most 1,000")
    database = Database(url)
    try:
        await database.read(check_version)
        return await database.write(lambda connection: _grant(connection, account, micro, grant_id, note))
    finally:
        await database.close()


def _grant(connection: sa.Connection, account: str, micro: int, grant_id: str, note: str) -> Granted:
    name, subjects, grants = account_subject(account), schema.subjects, schema.grants
    insert = insert_for(connection, subjects).values(id=name, state=encode(State()))
    connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))
    locked = sa.select(subjects.c.state, subjects.c.first_key_ms).where(subjects.c.id == name).with_for_update()
    subject = connection.execute(locked).one()
    state = decode(subject.state)
    known = connection.execute(
        sa.select(grants.c.micro).where(grants.c.account == account, grants.c.grant_id == grant_id)
    ).scalar_one_or_none()
    if known is None:
        if state.topup[0] + micro > MOST_MICRO:
            raise ValueError(f"all grants of an account are at most {MOST_MICRO // 1_000_000} credits")
        row = {"account": account, "grant_id": grant_id, "micro": micro, "note": note}
        connection.execute(sa.insert(grants).values(**row, created_ms=now_ms(connection)))
        state.topup[0] += micro
        connection.execute(sa.update(subjects).where(subjects.c.id == name).values(state=encode(state)))
    elif known != micro:
        raise GrantMismatchError(f"grant {grant_id!r} of {account} was made with another amount")
    granted, used, held = state.topup
    return Granted(known is None, granted, granted - used - held, subject.first_key_ms is not None)
