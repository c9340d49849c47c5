"""What `tollway up` shows while it works, on standard error: steps with their times. Standard output is for results."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn


class Steps:
    """`with steps.step("Ray"): …` for each; several may run at once. On a terminal they spin; elsewhere each is one
    line when it is done."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}"),
                TextColumn("{task.fields[took]}"),
            )
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._progress.start()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        task: TaskID | None = None
        if self._progress is not None:
            task = self._progress.add_task(name, total=1, took="")
        yield
        took = f"{time.monotonic() - begun:.1f} s"
        if self._progress is not None and task is not None:
            self._progress.update(task, completed=1, took=took)
        else:
            self.line(f"{name}  {took}")

    def finish(self) -> float:
        """Ends the display; answers the seconds since it began."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        return time.monotonic() - self._begun

    def line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the command line's voice
