"""Data as users have it, turned into samples that can be drawn in any order.

    a tensor                          its rows
    a mapping of tensors              its rows: {"input_ids": ids, "attention_mask": mask}
    with a length and an index        samples, or mini-batches as `lessen.prune` takes them
    anything else that is iterable    mini-batches: a `DataLoader`, a generator; read once and held in memory

Whether the items of a sequence are samples or batches shows in token ids, of which a sample has one axis. Else the first item is tried:
what models and losses accept after stacking is a sample; what they accept only as it is, a batch, which is cut into its rows. A network
that takes both (linear layers alone) gets samples; `iter(batches)` says that they are batches.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lessen.errors import LessenError, UsageError, one_line
from lessen.recover.order import collate

WANTED = "samples: a tensor, pairs, dicts, a data set, or mini-batches of these"


def samples_of(data: Any, accepts: Callable[[Any], object]) -> Any:
    """What can be indexed by sample.

    Args:
        data: see the header.
        accepts: raises on what the models and losses do not take as a batch.

    Raises:
        UsageError: nothing that holds samples.
        LessenError: items that the models take neither as samples nor as batches.

    >>> import torch
    >>> rows = samples_of(iter([torch.ones(2, 3), torch.ones(1, 3)]), accepts=print)
    >>> len(rows), rows[0].shape
    (3, torch.Size([3]))
    """
    if isinstance(data, Tensor):
        return data
    if isinstance(data, Mapping):
        return rows(data)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        if not isinstance(data, Iterable):
            raise UsageError("recover", got=f"data of type {type(data).__name__}", wanted=WANTED)
        return [row for batch in data for row in rows(batch)]
    return data if not len(data) or _are_samples(data, accepts) else [row for batch in data for row in rows(batch)]


def _are_samples(data: Any, accepts: Callable[[Any], object]) -> bool:
    ids = data[0].get("input_ids") if isinstance(data[0], Mapping) else data[0]
    if isinstance(ids, Tensor) and not ids.is_floating_point() and ids.ndim in (1, 2):
        return ids.ndim == 1
    try:
        accepts(collate(data, [0]))
        return True
    except Exception as error:
        try:
            accepts(data[0])
            return False
        except Exception:
            if isinstance(error, LessenError):
                raise error from None
            got = f"a first sample that the models do not take ({one_line(error)})"
            raise LessenError("recover", got=got, wanted=WANTED, remedy="run= says how a model is called") from error


def rows(batch: Any) -> list[Any]:
    """The samples of a batch.

    >>> import torch
    >>> rows((torch.zeros(2, 3), torch.tensor([4, 5])))[1]
    (tensor([0., 0., 0.]), tensor(5))
    """
    if isinstance(batch, Tensor):
        return list(batch)
    if isinstance(batch, Mapping):
        columns = [rows(value) for value in batch.values()]
        return [dict(zip(batch, row, strict=True)) for row in zip(*_even(columns), strict=True)]
    if isinstance(batch, tuple | list):
        return list(zip(*_even([rows(part) for part in batch]), strict=True))
    raise UsageError("recover", got=f"a batch that holds a {type(batch).__name__}", wanted="tensors")


def _even(columns: list[list[Any]]) -> list[list[Any]]:
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise UsageError("recover", got=f"a batch of tensors with {sorted(lengths)} rows", wanted="one row a sample in each")
    return columns


def student_of(student: Any, teacher: nn.Module | None) -> nn.Module:
    """The module to train: the one that is given, or that of what `lessen.prune` gave.

    Raises:
        UsageError: no module, or one that is a teacher's larger original.
    """
    found = student if isinstance(student, nn.Module) else getattr(student, "model", None)
    if not isinstance(found, nn.Module):
        raise UsageError("recover", got=f"a student of type {type(student).__name__}", wanted="a module, or what lessen.prune gave")
    if teacher is None:
        return found
    theirs = {name: parameter.shape for name, parameter in teacher.named_parameters()}
    ours = {name: parameter.shape for name, parameter in found.named_parameters() if name in theirs}
    pairs = [(shape, theirs[name]) for name, shape in ours.items() if shape != theirs[name]]
    if pairs and all(len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True)) for a, b in pairs):
        got = f"a student larger than its teacher in {len(pairs)} tensors"
        raise UsageError("recover", got=got, wanted="the smaller model first", remedy="recover(student=pruned, teacher=original, ...)")
    return found
