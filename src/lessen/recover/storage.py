"""A training run on disk: one directory a checkpoint, safetensors for what is numbers, JSON for the rest.

A checkpoint is written aside and renamed, and only then the one before is deleted, so that at every moment one complete checkpoint is
there. `run.json` holds what the bits of the run depend on; a directory that was begun with anything else is refused by the name of the
option.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lessen.errors import LessenError, UsageError


class Storage:
    """Checkpoints of one run.

    Args:
        folder: where they lie; made if need be.
        settings: what the run depends on, as plain data.

    Raises:
        UsageError: the folder holds something else, or a run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        about = folder / "run.json"
        if folder.exists() and any(folder.iterdir()) and not about.exists():
            raise UsageError(str(folder), got="a directory of something else", wanted="a new one, or that of this run")
        folder.mkdir(parents=True, exist_ok=True)
        mine = json.loads(json.dumps(settings))
        if about.exists():
            theirs = json.loads(about.read_text())
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    got = f"{key} {_short(theirs.get(key))} there and {_short(mine.get(key))} here"
                    raise UsageError(
                        str(folder), got=got, wanted="the run that was begun there", remedy="use its settings, or another folder"
                    )
        else:
            _write(about, mine)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the state after a step, and it alone."""
        place = self.folder / f"step-{step:08d}"
        aside = self.folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / "tensors.safetensors")
            _write(aside / "state.json", {"step": step, **state})
            shutil.rmtree(place, ignore_errors=True)
            aside.rename(place)
        except (OSError, SafetensorError) as error:
            raise LessenError(str(self.folder), got=str(error), wanted="to save a checkpoint", remedy="make room and run again") from None
        for old in self._all():
            if old != place:
                shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint: its tensors and its state; None if there is none."""
        found = self._all()
        if not found:
            return None
        with safe_open(found[-1] / "tensors.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((found[-1] / "state.json").read_text())

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _write(path: Path, data: Any) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.replace(path)


def _short(value: Any) -> str:
    return repr(value)[:80]
