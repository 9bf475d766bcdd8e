"""Numbers of experts and of tokens that modules and configurations keep, where no call of the traced forward was given them.

A loss over all routers multiplies by the number of experts, and runs only with labels: nobody sees it in a forward. So what is called
`num_experts` and held as many as there were holds as many as are left. Modules that lie in the block of the experts say how many this block
has; those above it say it too, where it is one number for all blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lessen.core.edit import Edit, Keep, Resize

EXPERTS = ("num_experts", "num_local_experts", "n_experts", "n_routed_experts")
VOCABULARY = "vocab_size"


def counts(model: nn.Module, edits: Sequence[Edit]) -> list[Resize]:
    """What becomes of these numbers, without those that edits change already."""
    named = {edit.name for edit in edits if isinstance(edit, Resize)}
    experts = [edit for edit in edits if isinstance(edit, Keep) and edit.unit.kind == "experts"]
    found: dict[str, Resize] = {}
    for keep in (edit for edit in edits if isinstance(edit, Keep) and edit.unit.kind in ("experts", "vocab")):
        places = _of_experts(model, keep, experts) if keep.unit.kind == "experts" else _of_tokens(model)
        for name, before in places:
            if before == keep.unit.size and name not in named:
                found[name] = Resize(name, before, len(keep.indices))
    return list(found.values())


def uneven(smaller: nn.Module, edits: Sequence[Edit]) -> list[str]:
    """A word where layers keep different numbers of experts."""
    if not any(isinstance(edit, Keep) and edit.unit.kind == "experts" for edit in edits):
        return []
    if len(set(_packs(smaller).values())) < 2:
        return []
    return ["Its layers keep different numbers of experts: losses over all routers at once (output_router_logits) cannot be taken."]


def _of_tokens(model: nn.Module) -> Iterator[tuple[str, int]]:
    for path, module in model.named_modules():
        yield from _numbers(path, module, (VOCABULARY,))
        yield from _numbers(_inside(path, "config"), getattr(module, "config", None), (VOCABULARY,))


def _of_experts(model: nn.Module, keep: Keep, experts: Sequence[Keep]) -> Iterator[tuple[str, int]]:
    block = keep.unit.name.rpartition(".")[0]
    left = {other.unit.name.rpartition(".")[0]: len(other.indices) for other in experts}
    after = {next((left[name] for name in left if _below(pack, name)), size) for pack, size in _packs(model).items()}
    for path, module in model.named_modules():
        if _below(path, block) or (len(after) == 1 and _below(block, path)):
            yield from _numbers(path, module, EXPERTS)


def _packs(model: nn.Module) -> dict[str, int]:
    """Innermost modules that say how many experts there are."""
    said = {path: number for path, module in model.named_modules() for _, number in _numbers(path, module, EXPERTS)}
    return {path: number for path, number in said.items() if not any(other != path and _below(other, path) for other in said)}


def _numbers(path: str, owner: Any, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    for key in keys:
        value = getattr(owner, key, None)
        if isinstance(value, int):
            yield _inside(path, key), value


def _inside(path: str, word: str) -> str:
    return f"{path}.{word}" if path else word


def _below(path: str, outer: str) -> bool:
    """Whether a module is another one or lies in it."""
    return not outer or f"{path}.".startswith(f"{outer}.")
