"""Small text files that are either the old one or the new one, never half of one."""

import os
import uuid
from pathlib import Path


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path`; the file is complete or unchanged whatever interrupts the writing.

    Raises:
        OSError: the folder cannot be written to or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
