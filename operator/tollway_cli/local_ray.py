"""The Ray of `tollway up`: starts it under the guardian, waits for its Serve REST API, ends it. Called by `up`."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import IO

from tollway_cli.errors import CliError
from tollway_cli.guardian import adopt_orphans, kill_descendants
from tollway_cli.ray_head import Head
from tollway_operator.errors import OperatorError
from tollway_operator.serve_api import ServeApi

_START_TIMEOUT_S = 180.0
_POLL_S = 0.1
_LOG_TAIL = 5


class LocalRay:
    """One Ray head and everything below it. Whatever happens to this process, the guardian ends them."""

    def __init__(self, head: Head, cpus: int, lock: int, log: Path) -> None:
        self._head = head
        self._log = log
        adopt_orphans()  # so that even if the guardian is killed, nothing escapes
        command = [sys.executable, "-m", "tollway_cli.guardian", "--remove", str(head.temp), "--", *head.command(cpus)]
        out: IO[bytes]
        with log.open("wb") as out:
            self._guardian = subprocess.Popen(  # noqa: S603 - our own module, with the arguments of a Head
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=dict(head.environment),
                cwd=head.temp,
                start_new_session=True,  # Ctrl-C in the terminal is for `up` alone
                pass_fds=[lock],
            )

    async def ready(self, api: ServeApi) -> None:
        """Returns once the REST API answers. CliError if Ray ends first, or takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_TIMEOUT_S
        while True:
            if self._guardian.poll() is not None:
                raise CliError(self.obituary())
            try:
                await api.status()
            except OperatorError as error:
                if loop.time() > deadline:
                    raise CliError(
                        f"Ray did not start within {_START_TIMEOUT_S:.0f} s: {error}; see {self._log}"
                    ) from error
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def ended(self) -> int:
        """Returns when Ray has ended, which it never does by itself unless something broke."""
        return await asyncio.to_thread(self._guardian.wait)

    def obituary(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()[-_LOG_TAIL:]
        reason = lines[-1].strip() if lines else f"exit status {self._guardian.returncode}"
        return f"Ray ended unexpectedly: {reason}; its logs: {self._log} and {self._head.temp}"

    def stop(self) -> None:
        """Ends everything; when this returns, no process and no port is left."""
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()  # the guardian's signal
        if self._guardian.wait() != 0:
            kill_descendants()  # only if the guardian itself was killed is anything left, and then it is ours
