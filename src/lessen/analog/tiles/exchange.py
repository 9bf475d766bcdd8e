"""One module in the place of another, under every name that the other has: a layer may be registered with several parents."""

from collections import defaultdict

from torch import nn


class Places:
    """Where the modules of a network are registered, looked up once.

    Attributes:
        root: the network; another module once it has been replaced itself.
    """

    def __init__(self, root: nn.Module):
        self.root = root
        self._parents: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in root.modules():
            for leaf, child in parent._modules.items():
                if child is not None:
                    self._parents[child].append((parent, leaf))

    def exchange(self, old: nn.Module, new: nn.Module) -> None:
        """Put a module in all places of another."""
        if old is self.root:
            self.root = new
        places = self._parents.pop(old, [])
        for parent, leaf in places:
            setattr(parent, leaf, new)
        self._parents[new] = places


def names_of(root: nn.Module) -> dict[nn.Module, list[str]]:
    """Every name of every module."""
    found: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in root.named_modules(remove_duplicate=False):
        found[module].append(name)
    return found
