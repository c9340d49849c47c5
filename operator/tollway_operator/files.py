"""The `Objects` port over YAML files, for `tollway up`: the same rules as on a cluster, keys and statuses as files."""

from collections.abc import Sequence
from pathlib import Path


class FilesObjects:
    """`paths` are YAML files or folders of them; `state` is the state folder.

    `await start()` reads everything once (raises errors.Refused with one line if a file is broken at the start) and
    begins to watch; `await close()` ends that. `key_file(namespace, name)` answers where an ApiKey's key stands.
    """

    def __init__(self, paths: Sequence[Path], state: Path) -> None: ...
