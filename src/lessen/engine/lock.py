"""One run at a time in a directory: a lock that the operating system takes back when its holder dies, however it dies.

The lock is on a file beside the directory, `DIR.lock`, with the number of the process that holds it; it is removed at the end. What a
killed run leaves is a file that nobody has locked, which stops nobody. Whoever waited for a file that was removed meanwhile holds a lock
that others cannot see, so the file is compared with what is at its place before the lock counts.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lessen.errors import LessenError, UsageError


@contextmanager
def alone(*folders: Path) -> Iterator[None]:
    """Hold the directories for as long as the block runs.

    Raises:
        LessenError: another run holds one of them. UsageError: nothing can be written there.
    """
    with ExitStack() as held:
        for path in _files(folders):
            held.enter_context(_locked(path))
        yield


def _files(folders: Sequence[Path]) -> list[Path]:
    """Lock files in an order that is the same for all, so that two runs cannot wait for each other."""
    return sorted({folder.absolute().with_name(f"{folder.name}.lock") for folder in folders})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _taken(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _taken(path: Path) -> int:
    """An open file that is locked and is the one at `path`."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            got, remedy = error.strerror or str(error), "choose another place, or mend its rights"
            raise UsageError(str(path.parent), got=got, wanted="a directory that can be written", remedy=remedy) from None
        try:
            _lock(descriptor)
            found = path.stat()
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise LessenError(
                str(path.with_suffix("")),
                got=f"another run at work there (process {holder})",
                wanted="one run at a time",
                remedy="wait for it, end it, or choose another directory",
            ) from None
        except FileNotFoundError:
            os.close(descriptor)
            continue
        if os.path.samestat(found, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file or raise BlockingIOError. Where the system or the file system has no locks, a run is not kept apart from others."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return
