"""`tollway usage verify`, `tollway usage export` and `tollway credits grant`: put into the command line by `main`.

They talk to the ledger's database only, so that they work beside a running platform and without one.
"""

import asyncio
import csv
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import orjson
import typer

from tollway_cli.errors import CliError

T = TypeVar("T")

usage_app = typer.Typer(name="usage", help="What was used and charged.", no_args_is_help=True)
credits_app = typer.Typer(name="credits", help="Credits beside those of a plan.", no_args_is_help=True)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="TOLLWAY_DATABASE_URL",
        show_envvar=True,
        show_default="that of the state folder",
        help="The ledger: sqlite:////path/file.db or postgresql://user:password@host:port/name.",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(envvar="TOLLWAY_STATE_DIR", show_default=".tollway", help="The state folder of a `tollway up`."),
]
SecretsDir = Annotated[
    Path | None,
    typer.Option(envvar="TOLLWAY_SECRETS_DIR", hidden=True, help="Where a pod of the platform finds its secrets."),
]

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
_COULD_NOT = 2  # as for a wrong option: 1 of `usage verify` always means that the books are wrong


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"


def add_to(app: typer.Typer) -> None:
    """Puts both groups of commands into the `tollway` command."""
    app.add_typer(usage_app)
    app.add_typer(credits_app)


@usage_app.command("verify")
def verify_usage(database_url: DatabaseUrl = None, state_dir: StateDir = None, secrets_dir: SecretsDir = None) -> None:
    """Recompute every account from its rows. Exit status: 0 all is right, 1 something differs, 2 it can't be read."""
    from tollway_serving.contract.units import format_credits
    from tollway_serving.ledger.verify import verify

    try:
        report = _ask(verify(_database(database_url, state_dir, secrets_dir)))
    except CliError as error:
        typer.echo(f"tollway: {error}", err=True)
        raise typer.Exit(_COULD_NOT) from error
    for problem in report.problems:
        typer.echo(problem)
    typer.echo(
        f"{report.usage_rows} charges of {format_credits(report.charged_micro)} credits"
        f" ({format_credits(report.overrun_micro)} used beyond holds and not charged),"
        f" {report.open_holds} calls in flight, {report.subjects} accounts and keys: "
        + ("all is right" if report.clean else f"{len(report.problems)} problems"),
        err=True,
    )
    if not report.clean:
        raise typer.Exit(1)


@usage_app.command("export")
def export_usage(
    output_format: Annotated[Format, typer.Option("--format", help="csv has a header line.")] = Format.csv,
    account: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMESPACE/ACCOUNT", show_default="all", help="Only this account; may be repeated."),
    ] = None,
    period: Annotated[
        str | None,
        typer.Option(metavar="PERIOD", help="A month (2026-11), ISO week (2026-W48) or day (2026-11-25), in UTC."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", formats=_TIMES, help="From this time on: 2026-11-25T10:00:00 or a day, in UTC."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(metavar="TIME", formats=_TIMES, help="Up to just before this time.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", show_default="standard output", help="Written whole or not at all."),
    ] = None,
    database_url: DatabaseUrl = None,
    state_dir: StateDir = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Write each settled call with its counts, prices and charge, oldest first."""
    from tollway_serving.contract.units import format_credits
    from tollway_serving.ledger.export import Span, export
    from tollway_serving.ledger.export import period as period_of

    if period is not None and (since is not None or until is not None):
        raise typer.BadParameter("is instead of --since and --until", param_hint="--period")
    for name in account or ():
        if name.count("/") != 1 or not all(name.split("/")):
            raise typer.BadParameter(f"{name!r} is not NAMESPACE/ACCOUNT", param_hint="--account")
    try:
        span = period_of(period) if period is not None else Span(_milliseconds(since), _milliseconds(until))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--period") from error
    url = _database(database_url, state_dir, secrets_dir)
    try:
        with _written(output) as out:
            done = _ask(export(url, account or (), span, _writer(out, output_format)))
    except BrokenPipeError:
        # Whoever read it has seen enough. What Python still wants to flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        raise CliError(f"the export can't be written: {error.strerror or error}") from error
    typer.echo(f"{done.rows} calls, {format_credits(done.charged_micro)} credits charged", err=True)


@credits_app.command("grant")
def grant_credits(
    account: Annotated[str, typer.Argument(metavar="NAMESPACE/ACCOUNT")],
    amount: Annotated[str, typer.Argument(metavar="CREDITS", help="For example 25 or 0.5.")],
    grant_id: Annotated[
        str,
        typer.Option("--id", help="Your own name for this grant, such as an invoice's: the same again adds nothing."),
    ],
    note: Annotated[str, typer.Option(help="Kept with it.")] = "",
    database_url: DatabaseUrl = None,
    state_dir: StateDir = None,
    secrets_dir: SecretsDir = None,
) -> None:
    """Add credits to an account, used once those of its plan's month are and kept until then. Can't be taken back."""
    from tollway_operator.resources.quantities import micro_credits
    from tollway_serving.contract.units import format_credits
    from tollway_serving.ledger.grant import GrantMismatchError, grant

    url = _database(database_url, state_dir, secrets_dir)
    try:
        done = _ask(grant(url, account, micro_credits(amount), grant_id, note))
    except (ValueError, GrantMismatchError) as error:
        raise CliError(str(error)) from error
    said = f"{format_credits(done.granted_micro)} granted in all, {format_credits(done.left_micro)} left"
    if done.created:
        typer.echo(f"{account} has {amount} credits more: {said}")
    else:
        typer.echo(f"{account} was given grant {grant_id} before, nothing was added: {said}")
    if not done.has_keys:
        typer.echo(f"tollway: {account} has never had a key; is that its name?", err=True)


def _database(url: str | None, state_dir: Path | None, secrets_dir: Path | None) -> str:
    """The first that is there of: the URL, the state folder named, the pod's secrets, the usual state folder."""
    from tollway_serving.ledger.database import sqlite_path

    if url is None:
        folder = secrets_dir if state_dir is None and secrets_dir is not None else (state_dir or Path(".tollway"))
        file = folder / ("database-url" if folder is secrets_dir else "platform/database-url")
        try:
            url = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CliError(
                f"no ledger is known in {folder}: name it with --database-url, or the folder of a `tollway up`"
                f" with --state-dir ({file}: {error.strerror})"
            ) from error
    try:
        sqlite_path(url)
    except ValueError as error:
        raise CliError(str(error)) from error
    return url


def _ask(question: Coroutine[Any, Any, T]) -> T:
    from tollway_serving.ledger.ops import LedgerUnavailable

    try:
        return asyncio.run(question)
    except LedgerUnavailable as error:
        raise CliError(f"the ledger can't be read or written: {error}") from error


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp() * 1000)


@contextmanager
def _written(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file for its owner's eyes that is there once it is whole."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    part = output.with_name(f".{output.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            yield out
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _writer(out: IO[str], output_format: Format) -> Callable[[dict[str, Any]], object]:
    from tollway_serving.ledger.export import FIELDS

    if output_format is Format.jsonl:
        return lambda record: out.write(orjson.dumps(record).decode() + "\n")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(FIELDS)
    return lambda record: table.writerow([_cell(record[field]) for field in FIELDS])


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return "'" + value  # a client chooses its request ids, and a spreadsheet would take this one for a formula
    return value
