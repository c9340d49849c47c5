"""What a backend remembers between two transactions: never used once it may be wrong."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.ledger import catalogue, publisher, reserve, settle

from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger import sqlite as module
from tollway_serving.ledger.backends import open_backend
from tollway_serving.ledger.grant import grant
from tollway_serving.ledger.ops import Cover, LedgerUnavailable, Receipt, Refused, Reserve, Reserved
from tollway_serving.ledger.sqlite import SqliteBackend
from tollway_serving.ledger.transaction import AnyOp, Expire, Result
from tollway_serving.ledger.verify import verify

LIMITS = Limits(credits_monthly_micro=100)  # two reserves of 50


def limited(**changes: Any) -> Reserve:
    return reserve(account_limits=LIMITS, **changes)


async def run(backend: SqliteBackend, *ops: AnyOp) -> list[Result]:
    return (await backend.transact(ops)).results


async def warm(backend: SqliteBackend) -> None:
    op = limited()
    assert isinstance((await run(backend, op))[0], Reserved)
    assert isinstance((await run(backend, settle(op, status="released")))[0], Receipt)


@pytest.fixture
async def ledger_file(sqlite_url: str, sqlite_file: Path) -> AsyncIterator[Path]:
    async with publisher(sqlite_url, catalogue(accounts=2)):
        yield sqlite_file
        assert (await verify(sqlite_url)).problems == []


@pytest.fixture
async def backend(ledger_file: Path) -> AsyncIterator[SqliteBackend]:
    opened = SqliteBackend(ledger_file)
    await opened.connect()
    await warm(opened)
    yield opened
    await opened.close()


@pytest.fixture
async def other(ledger_file: Path) -> AsyncIterator[SqliteBackend]:
    opened = SqliteBackend(ledger_file)
    await opened.connect()
    yield opened
    await opened.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read from rows of subjects and holds."""
    seen: list[str] = []

    def count(name: str) -> None:
        read = getattr(module, name)

        def counted(row: Any) -> Any:
            seen.append(name)
            return read(row)

        monkeypatch.setattr(module, name, counted)

    count("decode")
    count("hold_from_row")
    return seen


async def test_alone_it_reads_nothing(backend: SqliteBackend, reads: list[str]) -> None:
    op = limited()
    assert isinstance((await run(backend, op))[0], Reserved)
    assert await run(backend, Cover(op.charge_id, 5)) == [None]
    assert isinstance((await run(backend, settle(op)))[0], Receipt)
    assert reads == []


async def test_credits_that_another_process_took(backend: SqliteBackend, other: SqliteBackend) -> None:
    ops = [limited(), limited()]
    assert [type(each) for each in await run(other, *ops)] == [Reserved, Reserved]
    assert isinstance((await run(backend, limited()))[0], Refused)
    await run(other, *(settle(op, output=0) for op in ops))
    assert [type(each) for each in await run(backend, limited(), limited())] == [Reserved, Refused]


async def test_a_hold_that_another_process_closed(backend: SqliteBackend, other: SqliteBackend) -> None:
    op = limited()
    await run(backend, op)
    (expired,) = await run(other, Expire(op.charge_id))
    assert isinstance(expired, Receipt)
    (late,) = await run(backend, settle(op))
    assert isinstance(late, Receipt)
    assert late.charged_micro == expired.charged_micro == 10


async def test_a_hold_that_another_process_covered(url: str) -> None:
    async with publisher(url, catalogue()):
        mine, theirs, op = open_backend(url), open_backend(url), reserve()
        await mine.connect()
        await theirs.connect()
        await mine.transact([op])
        await theirs.transact([Cover(op.charge_id, 7)])
        (expired,) = (await mine.transact([Expire(op.charge_id)])).results
        assert isinstance(expired, Receipt)
        assert expired.charged_micro == 10 + 2 * 7
        (again,) = (await theirs.transact([settle(op)])).results
        assert again == expired
        await mine.close()
        await theirs.close()
    assert (await verify(url)).problems == []


async def test_credits_that_were_granted(backend: SqliteBackend, sqlite_url: str) -> None:
    """By another connection of this process, as the heartbeat writes, too."""
    await run(backend, limited(), limited())
    assert isinstance((await run(backend, limited()))[0], Refused)
    await grant(sqlite_url, "team/a0", 50, "grant")
    assert isinstance((await run(backend, limited()))[0], Reserved)


async def test_a_key_that_was_revoked(backend: SqliteBackend, ledger_file: Path) -> None:
    content = catalogue(accounts=2)
    async with publisher(f"sqlite://{ledger_file}") as operator:
        await operator.publish(content.model_copy(update={"keys": content.keys[1:]}))
    (answer,) = await run(backend, limited())
    assert isinstance(answer, Refused)
    assert answer.code == "invalid_api_key"


async def test_a_connection_that_was_opened_again(backend: SqliteBackend, ledger_file: Path) -> None:
    """data_version begins anew with each connection, and may be the same number."""
    other, theirs = SqliteBackend(ledger_file), [limited(), limited()]

    def lost() -> None:
        backend._disconnect()
        other._transact(theirs)  # in this thread
        other._disconnect()

    await backend._call(lost)
    assert isinstance((await run(backend, limited()))[0], Refused)
    assert isinstance((await run(backend, settle(theirs[0])))[0], Receipt)


async def test_a_batch_that_cant_be_written(backend: SqliteBackend) -> None:
    op = limited()
    await run(backend, op)
    with pytest.raises(OverflowError):
        await run(backend, limited(), settle(op, duration_ms=2**70))
    assert [type(each) for each in await run(backend, limited(), limited())] == [Reserved, Refused]
    assert isinstance((await run(backend, settle(op)))[0], Receipt)


class LostAnswer:
    """A connection whose next commit is carried out and ends in an error all the same."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, text: str, *parameters: Any) -> Any:
        result = self._connection.execute(text, *parameters)
        if text == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return result


async def test_a_commit_whose_answer_is_lost(backend: SqliteBackend) -> None:
    """Tried again, a reserve is found, though all credits are taken, and is not refused."""
    op, filler = limited(), limited()
    await run(backend, filler)
    backend._connection = LostAnswer(backend._connection)  # type: ignore[assignment]
    with pytest.raises(LedgerUnavailable):
        await run(backend, op)
    assert await run(backend, Cover(filler.charge_id, 1)) == [None]
    assert isinstance((await run(backend, op))[0], Reserved)
    (receipt,) = await run(backend, settle(op))
    assert isinstance(receipt, Receipt)
    assert receipt.charged_micro == 50


async def test_what_it_remembers_is_bounded(
    backend: SqliteBackend, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    ops = [reserve(number % 2) for number in range(6)]
    for op in ops:
        assert isinstance((await run(backend, op))[0], Reserved)
    assert backend._memory is not None
    assert len(backend._memory.holds) <= 3
    assert reads, "what was forgotten is read again"
    for op in ops:
        assert isinstance((await run(backend, settle(op)))[0], Receipt)


async def test_a_file_that_another_process_has_locked_does_not_hold_the_event_loop(
    backend: SqliteBackend, ledger_file: Path
) -> None:
    other = sqlite3.connect(ledger_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(run(backend, limited()))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    other.execute("COMMIT")  # by the loop that would be waiting
    other.close()
    assert isinstance((await waiting)[0], Reserved)
