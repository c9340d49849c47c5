"""`tollway usage verify`, `usage export` and `credits grant` on both databases."""

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.ledger import catalogue, ledger, publisher, reserve, settle

from tollway_cli.main import main
from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.export import FIELDS
from tollway_serving.ledger.ops import Refused, Reserved


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


async def tollway(*arguments: str, **environment: str) -> Ended:
    """The command in a thread of this process with only `environment` set: starting one would take a second of CPU."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        for name in [name for name in os.environ if name.startswith("TOLLWAY_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["tollway", *arguments])
        status = await asyncio.to_thread(_status)
        return Ended(status, out.getvalue(), err.getvalue())


def _status() -> int:
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
async def used(url: str) -> AsyncIterator[str]:
    """Two charges of team/a0 (50 and 16 micro-credits), one of team/a1 (50), and a call in flight."""
    async with publisher(url, catalogue(accounts=2)), ledger(url) as store:
        for account, output in ((0, 20), (0, 3), (1, 20)):
            op = reserve(account, request_id=f"+{account}")
            await store.submit(op)
            await store.submit(settle(op, output=output))
        await store.submit(reserve(1, deadline_ms=3_600_000))
        yield url


async def test_verify_says_what_differs(used: str) -> None:
    right = await tollway("usage", "verify", "--database-url", used)
    assert (right.returncode, right.stdout) == (0, ""), right.stderr
    assert "3 charges of 0.000116 credits (0 used beyond holds and not charged), 1 calls in flight" in right.stderr
    assert right.stderr.endswith("all is right\n")
    dearer = sa.update(schema.usage).where(schema.usage.c.charged_micro == 16).values(charged_micro=17)
    database = Database(used)
    assert await database.write(lambda connection: connection.execute(dearer).rowcount) == 1
    await database.close()
    wrong = await tollway("usage", "verify", TOLLWAY_DATABASE_URL=used)
    assert wrong.returncode == 1
    assert "is not its counts at its prices" in wrong.stdout
    assert "account:team/a0: credits of " in wrong.stdout
    assert "roll-up ('team/a0'," in wrong.stdout
    assert "team/a1" not in wrong.stdout


async def test_a_removed_charge_is_missed(used: str) -> None:
    database = Database(used)
    gone = sa.delete(schema.usage).where(schema.usage.c.charged_micro == 16)
    assert await database.write(lambda connection: connection.execute(gone).rowcount) == 1
    await database.close()
    wrong = await tollway("usage", "verify", "--database-url", used)
    assert wrong.returncode == 1
    assert "account:team/a0: counts of " in wrong.stdout


async def test_export_by_account_and_period(used: str) -> None:
    now = datetime.now(UTC)
    months = [f"{now:%Y-%m}", f"{now - timedelta(days=40):%Y-%m}"]
    answers = [
        await tollway("usage", "export", "--database-url", used, *options)
        for options in (
            ("--account", "team/a0", "--period", months[0]),
            ("--account", "team/a0", "--account", "team/a1", "--since", f"{now:%Y-%m-%d}", "--format", "jsonl"),
            ("--period", months[1], "--format", "jsonl"),
            ("--until", f"{now:%Y-%m-%d}"),
        )
    ]
    assert [answer.returncode for answer in answers] == [0, 0, 0, 0], answers
    rows = list(csv.DictReader(io.StringIO(answers[0].stdout)))
    assert [row["credits_charged"] for row in rows] == ["0.00005", "0.000016"]
    assert list(rows[0]) == list(FIELDS)
    assert (rows[1]["input_tokens"], rows[1]["output_tokens"], rows[1]["requests"]) == ("10", "3", "1")
    assert rows[0]["request_id"] == "'+0", "a spreadsheet takes +0 for a formula"
    assert datetime.fromisoformat(rows[0]["created_at"]) <= datetime.fromisoformat(rows[0]["settled_at"])
    assert answers[0].stderr == "2 calls, 0.000066 credits charged\n"
    records = [json.loads(line) for line in answers[1].stdout.splitlines()]
    assert [record["account"] for record in records] == ["team/a0", "team/a0", "team/a1"]
    assert records[2]["request_id"] == "+1"
    assert (records[2]["estimated"], records[2]["error_code"], records[2]["output_tokens"]) == (False, None, 20)
    assert records[2]["prices"] == {"input_tokens": 1_000_000, "output_tokens": 2_000_000}
    assert answers[2].stdout == ""
    assert answers[3].stdout == ",".join(FIELDS) + "\n"


async def test_export_into_a_file_is_whole_or_absent(used: str, tmp_path: Path) -> None:
    export = ("usage", "export", "--database-url", used, "--output")
    done = await tollway(*export, str(tmp_path / "usage.csv"))
    assert (done.returncode, done.stdout) == (0, "")
    assert len((tmp_path / "usage.csv").read_text().splitlines()) == 4
    assert (tmp_path / "usage.csv").stat().st_mode & 0o777 == 0o600
    nowhere = await tollway(*export, str(tmp_path / "missing" / "usage.csv"))
    assert nowhere.returncode == 1
    assert nowhere.stderr == "tollway: the export can't be written: No such file or directory\n"
    full = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tollway_cli", *export[:-1]],
        stdout=os.open("/dev/full", os.O_WRONLY),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    assert full.stderr.startswith("tollway: the export can't be written: No space left on device")


async def test_granted_credits_pay_when_the_months_are_used(used: str) -> None:
    grant = ("credits", "grant", "team/a0", "0.0001", "--id", "invoice-7", "--database-url", used)
    first = await tollway(*grant, "--note", "paid by card")
    again = await tollway(*grant)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert first.stdout == "team/a0 has 0.0001 credits more: 0.0001 granted in all, 0.0001 left\n"
    assert again.stdout == (
        "team/a0 was given grant invoice-7 before, nothing was added: 0.0001 granted in all, 0.0001 left\n"
    )
    other = await tollway(*grant[:3], "0.2", *grant[4:])
    assert (other.returncode, other.stdout) == (1, "")
    assert "was made with another amount" in other.stderr
    limits = Limits(credits_monthly_micro=66)  # of which the account has used 66
    async with ledger(used) as store:
        answers = [await store.submit(reserve(account_limits=limits)) for _ in range(3)]
    assert [type(answer) for answer in answers] == [Reserved, Reserved, Refused]
    assert (await tollway("usage", "verify", "--database-url", used)).returncode == 0


async def test_a_grant_for_nobody_says_so(used: str) -> None:
    done = await tollway("credits", "grant", "team/a00", "5", "--id", "slip", "--database-url", used)
    assert done.returncode == 0
    assert done.stderr == "tollway: team/a00 has never had a key; is that its name?\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("usage", "verify"), 2, "tollway: no ledger is known in "),
        (("usage", "verify", "--database-url", "mysql://x/y"), 2, "a database URL is sqlite:///PATH or postgresql://"),
        (("usage", "verify", "--database-url", "sqlite:////nowhere/ledger.db"), 2, "the ledger can't be read"),
        (("usage", "verify", "--database-url", "postgresql://user:secret@127.0.0.1:1/x"), 2, "the ledger can't be"),
        (("usage", "export", "--period", "2026-13"), 2, "is no period"),
        (("usage", "export", "--period", "2026-11", "--since", "2026-11-01"), 2, "instead of --since"),
        (("usage", "export", "--account", "team"), 2, "is not NAMESPACE/ACCOUNT"),
        (("usage", "export"), 1, "tollway: no ledger is known in "),
        (
            ("credits", "grant", "team", "5", "--id", "x", "--database-url", "sqlite:////nowhere/l.db"),
            1,
            "an account is",
        ),
        (("credits", "grant", "a/b", "-5", "--id", "x"), 2, "No such option"),
        (("credits", "grant", "a/b", "0", "--id", "x", "--database-url", "sqlite:////nowhere/l.db"), 1, "more than 0"),
        (
            ("credits", "grant", "a/b", "0.1234567", "--id", "x", "--database-url", "sqlite:////nowhere/l.db"),
            1,
            "not a number of credits: 0.1234567",
        ),
        (
            ("credits", "grant", "a/b", "1000000000", "--id", "x", "--database-url", "sqlite:////nowhere/l.db"),
            1,
            "not a number of credits: 1000000000",
        ),
        (("usage", "export", "--period", "2026-W54"), 2, "is no period"),
        (("usage", "export", "--period", "2026-02-30"), 2, "is no period"),
        (("usage", "export", "--since", "2026-02-30"), 2, "Invalid value for '--since'"),
        (
            ("credits", "grant", "a/b", "1e3", "--id", "x", "--database-url", "sqlite:////nowhere/l.db"),
            1,
            "not a number",
        ),
    ],
)
async def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = await tollway(*arguments, TOLLWAY_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (status, ""), done
    assert said in " ".join(done.stderr.split()), done.stderr
    assert "secret" not in done.stderr


async def test_a_state_folder_and_a_pod_know_their_ledger(sqlite_url: str, tmp_path: Path) -> None:
    async with publisher(sqlite_url, catalogue()):
        pass
    platform = tmp_path / "state" / "platform"
    platform.mkdir(parents=True)
    (platform / "database-url").write_text(sqlite_url + "\n")
    for arguments, environment in (
        (("--state-dir", str(platform.parent)), {"TOLLWAY_SECRETS_DIR": str(tmp_path / "other")}),
        ((), {"TOLLWAY_SECRETS_DIR": str(platform)}),
    ):
        done = await tollway("usage", "verify", *arguments, **environment)
        assert done.returncode == 0, done.stderr


async def test_a_reader_that_leaves_ends_the_export(sqlite_url: str) -> None:
    async with publisher(sqlite_url, catalogue()), ledger(sqlite_url) as store:
        ops = [reserve() for _ in range(1_000)]
        await asyncio.gather(*(store.submit(op) for op in ops))
        await asyncio.gather(*(store.submit(settle(op)) for op in ops))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tollway_cli", "usage", "export", "--format", "jsonl", "--database-url", sqlite_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1024,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.read(10) == b'{"charge_i'
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as `head` does
    assert await process.stderr.read() == b""
    assert await process.wait() == 1
