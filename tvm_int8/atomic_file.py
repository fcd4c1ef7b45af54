"""Writing a file so that its path holds the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import uuid


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write under a temporary name beside `path`, then rename.

    Raises
    ------
    OSError
        The file cannot be written; nothing is left behind.
    """
    temporary = f"{os.fspath(path)}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
