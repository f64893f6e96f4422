"""Where workflows go before they are pruned: lines in a file, or with whoever keeps them.

A line is written whole or not at all in the end: a process that dies in the middle of one leaves
it torn, and the next to write cuts it off, for its workflow was not deleted and is written again.
Nothing else is ever cut: a whole line that lost its end gets it back, and a file that ends in the
middle of something else is not written to. One process writes at a time, under a lock on the file.
"""

import io
import os
import sys
from pathlib import Path
from typing import Final

import msgspec
from anyio import to_thread

from dbos_async._config import Archive

if sys.platform != "win32":
    import fcntl

HEAD: Final = b'{"format":"dbos_async workflows"'
"""What each line of ours begins with."""
CHUNK: Final = 64 * 1024
"""Bytes to look at for the end of the last whole line."""


async def keep(archive: Archive, lines: list[str]) -> None:
    """Return once the lines are safe. Raises what the archive raises: then they may not be."""
    if callable(archive):
        await archive(lines)
    else:
        # A disk that does not answer must not keep a process from shutting down.
        await to_thread.run_sync(append, Path(archive), lines, abandon_on_cancel=True)


def append(path: Path, lines: list[str]) -> None:
    """Return once the lines are on the disk, at the end of the file.

    Raises:
        OSError: they are not; or the file ends in the middle of a line that is none of ours.
    """
    is_new = not path.exists()
    with path.open("ab+", buffering=0) as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        mend(file)
        write_all(file, "".join(line + "\n" for line in lines).encode())
        os.fsync(file.fileno())
    if is_new:
        sync_directory(path.parent)


def mend(file: io.FileIO) -> None:
    """Have the file end with a whole line. Raises as `append` does."""
    end = end_of_lines(file)
    file.seek(end)
    rest = file.readall() or b""
    if is_json(rest):
        write_all(file, b"\n")
    elif rest.startswith(HEAD) or HEAD.startswith(rest):
        file.truncate(end)
    else:
        raise OSError(
            f"{file.name} ends in the middle of a line that is of no archive of workflows: give "
            "another path, or end the line, if they are to follow it"
        )


def is_json(text: bytes) -> bool:
    """Whether it is a whole value. A part of a line of ours is none."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def end_of_lines(file: io.FileIO) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, io.SEEK_END)
    while end > 0:
        start = max(0, end - CHUNK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of it, however often the system takes a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync_directory(directory: Path) -> None:
    """Put the name of a new file on the disk, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
