"""A plan: every decision of a recipe, made and on disk, not yet carried out.

Methods run in passes. Neighbouring methods of scope "block" share one walk over the blocks; a method of scope "model" has its own. Each
pass sees the model as the passes before it leave it, through `Edited`, so that pruning then quantizing is a longer list and nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen.core.edit import Edit
from lessen.core.event import Listener
from lessen.core.record import Record
from lessen.engine.describe import describe
from lessen.engine.journal import Journal
from lessen.engine.quantize import BlockPass, Text, candidates
from lessen.engine.survey import ModelPass
from lessen.errors import DamagedModel, UsageError
from lessen.methods.rounding import Rounding
from lessen.models.checkpoint import Checkpoint
from lessen.models.edited import Edited
from lessen.structure.decoder import units, without_linears


@dataclass(frozen=True)
class Plan:
    """Decisions on disk.

    Attributes:
        source: the model they are about.
        edits: in the order in which they are to be applied; codes are read from the work directory when they are looked at.
        records: one per edit.
        notes: choices made for the user.
    """

    source: Checkpoint
    edits: tuple[Edit, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> Checkpoint:
        """The model as it will be: a lazy checkpoint, nothing is copied."""
        return Edited(self.source, self.edits) if self.edits else self.source


def passes(methods: Sequence[Any]) -> list[list[Any]]:
    """Methods grouped by the walk that they share.

    >>> from lessen.methods.rtn import RTN
    >>> [len(group) for group in passes([RTN(), RTN(on="embeddings")])]
    [2]
    """
    groups: list[list[Any]] = []
    for method in methods:
        if groups and method.scope == "block" and groups[-1][0].scope == "block":
            groups[-1].append(method)
        else:
            groups.append([method])
    return groups


def decide(
    source: Checkpoint, methods: Sequence[Any], text: Text | None, journal: Journal, on_event: Listener | None = None, device: str = "cpu"
) -> Plan:
    """Run every pass that the journal has not finished.

    Args:
        source: the model.
        methods: the recipe, in order.
        text: calibration and held-out windows; None if no method needs data (then no error is measured either).
        journal: where finished steps are kept.
        on_event: hears of every block.
        device: where to compute.

    Raises:
        UsageError: a grid that does not fit a tensor, a tensor that would be quantized twice, a method that the architecture lacks.
        LessenError: weights that are not numbers, a disk that is full.
    """
    try:
        return _decide(source, methods, text, journal, on_event, device)
    except (UsageError, DamagedModel):
        journal.release()
        raise
    except Exception:
        if methods and methods[0].scope == "block" and journal.finished(0) <= 1:  # tables at most, which are the work of a moment
            journal.release()
        raise


def _decide(
    source: Checkpoint, methods: Sequence[Any], text: Text | None, journal: Journal, on_event: Listener | None, device: str
) -> Plan:
    edits: list[Edit] = []
    records: list[Record] = []
    now = source
    for index, group in enumerate(passes(methods)):
        if group[0].scope == "model":
            ModelPass(now, group[0], None if text is None else text.calibration, journal, index, on_event, device).run()
        else:
            check(now, group)
            BlockPass(now, group, text, journal, index, on_event, device).run()
        for step in range(journal.finished(index)):
            edits += journal.edits(index, step)
            records += journal.records(index, step)
        now = Edited(source, edits) if edits else source
    return Plan(source, tuple(edits), tuple(records))


def check(checkpoint: Checkpoint, methods: Sequence[Any]) -> None:
    """Refuse before any work what could not be finished: grids that do not fit, the same tensor twice.

    Raises:
        UsageError: names the tensor.
    """
    found = units(checkpoint)
    taken: dict[str, str] = {}
    for method in methods:
        kinds = {candidate.kind for candidate in candidates(method)}
        if {"linear", "inputs"} & (kinds - {unit.kind for unit in found}):
            raise without_linears(checkpoint)
        if missing := kinds - {unit.kind for unit in found}:
            raise UsageError(checkpoint.label, got=f"no {missing.pop()} units", wanted=f"some, for {describe(method)}")
        names = dict.fromkeys(part.name for unit in found if unit.kind in kinds for part in unit.slices)
        for name in names:
            if name in taken:
                raise UsageError(
                    name, got=f"{describe(method)} after {taken[name]}", wanted="one method to a tensor", remedy="leave one out"
                )
            taken[name] = describe(method)
            for candidate in candidates(method):
                if isinstance(candidate, Rounding):
                    candidate.format.granularity.groups(checkpoint.shape(name)[1], name)


def job(source: Checkpoint, methods: Sequence[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """All that the bits of a result depend on, as plain data, and what model and methods are called."""
    names = {"label": source.label, "recipe": [describe(method) for method in methods]}
    return {"model": source.fingerprint(), "methods": [repr(method) for method in methods], **names, **settings}


def journal_at(work: Path, source: Checkpoint, methods: Sequence[Any], settings: dict[str, Any]) -> Journal:
    """The work directory for this job; refuses one that was begun with anything else."""
    return Journal(work, job(source, methods, settings))
