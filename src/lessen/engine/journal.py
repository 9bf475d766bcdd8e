"""The work directory of a run: every finished step is on disk at once, and a killed run goes on where it was, to the same bits.

A step is one decoder block of one pass (or the embeddings, or a decision for the whole model). Three files belong to it, each
written aside and renamed: its edits, the hidden states that the next step starts from, and last its records, whose presence means
that the step is complete. Only the newest hidden states are kept. `job.json` holds everything that the result depends on; a run
that asks for anything else is refused by the name of the option.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lessen.core.edit import Edit, load_edits, save_edits
from lessen.core.record import Record
from lessen.engine.changes import first_change
from lessen.errors import LessenError, UsageError

RESUMES = "free space, then run again: it resumes"
ROOM = 64 * 2**20  # bytes that must stay free beside what a step is known to write


class Journal:
    """Finished steps of one run in `folder`.

    Raises:
        UsageError: the folder holds a run with other options.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]):
        self.folder = folder
        self.job: dict[str, Any] = json.loads(json.dumps(job))
        agree(folder, self.job)

    @property
    def _description(self) -> Path:
        return self.folder / "job.json"

    def _path(self, pass_index: int, step: int, suffix: str) -> Path:
        return self.folder / f"pass{pass_index}-step{step:04d}.{suffix}"

    def finished(self, pass_index: int) -> int:
        """How many steps of the pass are complete, counted from its first."""
        step = 0
        while self._path(pass_index, step, "json").exists():
            step += 1
        return step

    def commit(
        self, pass_index: int, step: int, edits: Sequence[Edit], records: Sequence[Record], state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Make one step durable; `state` is what the next step starts from."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_room(state or {})
            if not self._description.exists():  # with the first finished step: a job that failed before binds nobody
                _write_json(self._description, self.job)
            save_edits(self._path(pass_index, step, "safetensors"), edits)
            if state is not None:
                aside = self._path(pass_index, step, "state.aside")
                save_file({k: v.contiguous() for k, v in state.items()}, aside)
                aside.replace(self._path(pass_index, step, "state"))
            _write_json(self._path(pass_index, step, "json"), [asdict(record) for record in records])
        except (OSError, SafetensorError) as error:
            raise LessenError(str(self.folder), got=str(error), wanted="room for one more block", remedy=RESUMES) from None
        for old in self.folder.glob(f"pass{pass_index}-step*.state"):
            if old != self._path(pass_index, step, "state"):
                old.unlink()

    def edits(self, pass_index: int, step: int) -> list[Edit]:
        """Edits of one finished step."""
        return load_edits(self._path(pass_index, step, "safetensors"))

    def records(self, pass_index: int, step: int) -> list[Record]:
        """Records of one finished step."""
        return [
            Record(**{**r, "shape_before": tuple(r["shape_before"]), "shape_after": tuple(r["shape_after"])})
            for r in json.loads(self._path(pass_index, step, "json").read_text())
        ]

    def state(self, pass_index: int, step: int) -> dict[str, Tensor]:
        """What the step after this one starts from."""
        return load_file(self._path(pass_index, step, "state"))

    def remove(self) -> None:
        """Delete the work directory: the result is elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Forget every step: what was asked for cannot be done, and must not bind the request that mends it."""
        clear(self.folder)

    def _check_room(self, state: Mapping[str, Tensor]) -> None:
        wanted = ROOM + sum(t.numel() * t.element_size() for t in state.values())
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise LessenError(
                str(self.folder),
                got=f"{free >> 20} MiB free",
                wanted=f"{wanted >> 20} MiB",
                remedy=RESUMES,
            )


def _write_json(path: Path, data: Any) -> None:
    aside = path.with_suffix(path.suffix + ".aside")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.replace(path)


def clear(folder: Path) -> None:
    """Remove what a run keeps in `folder`, and nothing else; the folder too if it is empty then."""
    for path in [folder / "job.json", *folder.glob("pass*-step*")]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def agree(folder: Path, job: Mapping[str, Any], partly: bool = False) -> None:
    """Refuse a job that differs from the one whose steps `folder` holds.

    Args:
        folder: a work directory, or a place where none is yet.
        job: all that the result depends on; with `partly`, what of it is known so far.
        partly: see `job`.

    Raises:
        UsageError: the option by name, with both values.
    """
    path = folder / "job.json"
    if not path.exists():
        return
    change = first_change(json.loads(path.read_text()), json.loads(json.dumps(job)), partly)
    if change is not None:
        where, got, wanted = change
        first = {"model": "choose another --out", "methods": "give the same methods"}.get(where, "give the old value")
        remedy = f"{first}, or add --fresh to begin again without what is kept in {folder}"
        raise UsageError(where, got=got, wanted=f"{wanted}, as when this run began", remedy=remedy)
