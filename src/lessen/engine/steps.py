"""What comes after the decisions, kept step by step: a run that is killed while it exports or measures goes on after its last whole step.

A step is a function that changes the run's record and may write files into the result that is being built. Once it is done, the
fields of the record that it changed and the names, sizes and times of its files are put on disk, together with what they depend on. The
next run takes the step from there if that has stayed the same and the files are as they were; otherwise it is done again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from lessen.core.record import Run

WRITTEN_LAST = {"lessen.json", "README.md", "report.html"}


class Steps:
    """Finished steps of one run.

    Args:
        folder: where they are kept.
        result: the directory that is being built.
        run: the record that the steps fill in.
    """

    def __init__(self, folder: Path, result: Path, run: Run):
        self.folder, self.result, self.run = folder, result, run

    def take(self, name: str, depends: Mapping[str, Any], work: Callable[[], None], files: Iterable[str] = ()) -> bool:
        """Do a step, or take from disk what it did before.

        Args:
            name: of the step, once in a run.
            depends: all that its outcome depends on, as plain data.
            work: fills in `run` and writes `files`; what it raises is passed on, and its files are removed.
            files: what it writes in `result`: names of files or folders; a star stands for all that is there.

        Returns:
            Whether it was done before.
        """
        kept = self.folder / f"done-{name.replace(' ', '-')}.json"
        key = sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        files = list(files)
        if (data := _read(kept)) and data["depends"] == key and data["files"] == self._stamps(data["files"]):
            for field, value in data["set"].items():
                setattr(self.run, field, value)
            for field, value in data["added"].items():
                getattr(self.run, field).extend(value)
            self.run.seconds.update(data["seconds"])
            return True
        kept.unlink(missing_ok=True)
        self._clear(files)
        before, started = _fields(self.run), time.perf_counter()
        earlier = set(self.run.seconds)
        try:
            work()
        except BaseException:
            self._clear(files)
            raise
        self.run.seconds.setdefault(name, time.perf_counter() - started)
        seconds = {phase: value for phase, value in self.run.seconds.items() if phase not in earlier}
        done = {"depends": key, **_changes(before, _fields(self.run)), "seconds": seconds, "files": self._stamps(self._found(files))}
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = kept.with_suffix(".aside")
        aside.write_text(json.dumps(done))
        aside.replace(kept)
        return False

    def _found(self, files: Iterable[str]) -> list[str]:
        """Files among and under what is named, but for those that are written again at the end of every run."""
        roots = [path for name in files for path in self.result.glob(name)]
        inner = {path for root in roots for path in (root, *(root.rglob("*") if root.is_dir() else ())) if path.is_file()}
        return sorted({str(path.relative_to(self.result)) for path in inner} - WRITTEN_LAST)

    def _stamps(self, files: Iterable[str]) -> dict[str, list[int]]:
        stamps = {}
        for name in files:
            with suppress(OSError):
                found = (self.result / name).stat()
                stamps[name] = [found.st_size, found.st_mtime_ns]
        return stamps

    def _clear(self, files: Iterable[str]) -> None:
        for name in files:
            for path in self.result.glob(name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the record that were set anew, and what was added to its lists (others may have added to them in another order)."""
    added, anew = {}, {}
    for field, value in after.items():
        if value == before[field]:
            continue
        if isinstance(value, list) and value[: len(before[field])] == before[field]:
            added[field] = value[len(before[field]) :]
        else:
            anew[field] = value
    return {"set": anew, "added": added}


def _fields(run: Run) -> dict[str, Any]:
    """A copy of the record as plain data, as it will be read back; the records of edits have a journal of their own."""
    data = {key: value for key, value in vars(run).items() if key not in ("records", "seconds")}
    return json.loads(json.dumps(data, default=asdict))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
