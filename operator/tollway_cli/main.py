"""The `tollway` command: parses arguments, and hands on. Every option is also an environment variable.

What a command needs is imported when it runs, so that `tollway --help` is quick and `tollway operator` needs no Ray.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tollway_cli import usage
from tollway_cli.errors import CliError

app = typer.Typer(
    name="tollway",
    help="A metered, OpenAI-compatible model platform on Kubernetes and Ray Serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
usage.add_to(app)

Files = Annotated[
    list[Path],
    typer.Option("--file", "-f", envvar="TOLLWAY_FILE", help="YAML files, or folders of them; may be repeated."),
]


@app.command()
def up(
    file: Files,
    state_dir: Annotated[
        Path, typer.Option(envvar="TOLLWAY_STATE_DIR", help="Where keys, usage and logs are kept.")
    ] = Path(".tollway"),
    host: Annotated[str, typer.Option(envvar="TOLLWAY_HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TOLLWAY_PORT", min=1, max=65535)] = 8000,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="TOLLWAY_DATABASE_URL",
            show_default="SQLite in the state folder",
            help="The ledger: sqlite:////path/file.db or postgresql://user:password@host:port/name.",
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(envvar="TOLLWAY_UP_METRICS_PORT", min=0, max=65535, help="On 127.0.0.1; 0: any free one.")
    ] = 0,
    usage_days: Annotated[
        int,
        typer.Option(
            envvar="TOLLWAY_USAGE_DAYS", min=0, help="How long single calls are kept; at least 45. 0: for ever."
        ),
    ] = 0,
) -> None:
    """Run the platform on this machine, from the same YAML that a cluster takes. Ctrl-C ends it."""
    from tollway_cli.up import UpOptions, run_up

    options = UpOptions(tuple(file), state_dir, host, port, database_url, metrics_port, _usage_days(usage_days))
    raise typer.Exit(run_up(options))


def _usage_days(days: int) -> int | None:
    from tollway_serving.ledger.tidy import usage_days

    try:
        return usage_days(days)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--usage-days") from error


@app.command()
def operator() -> None:
    """Run the Kubernetes operator; everything is set by TOLLWAY_* variables (docs/operator.md)."""
    from tollway_operator.main import run_operator, settings_from_env

    try:
        settings = settings_from_env(os.environ)
    except ValueError as error:
        raise CliError(str(error)) from error
    raise typer.Exit(run_operator(settings))


@app.command()
def validate(file: Files) -> None:
    """Check YAML files as the API server would, and say what to write instead; exit status 1 if anything is wrong."""
    from tollway_operator.resources.load import load

    found = load(file)
    for problem in found.problems:
        typer.echo(str(problem), err=True)
    if found.problems:
        raise typer.Exit(1)
    typer.echo(f"{len(found.resources)} objects are sound")


def main() -> None:
    try:
        app()
    except CliError as error:
        print(f"tollway: {error}", file=sys.stderr)  # noqa: T201 - this is the command line's voice
        sys.exit(1)
