"""Files that are either the old one or the new one, never half of one."""

import os
import uuid
from pathlib import Path


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to a temporary file beside `path`, flushes it to the disk and renames it.

    Raises:
        OSError: the folder cannot be written to or the disk is full; nothing is left behind and
            `path` is as it was.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
