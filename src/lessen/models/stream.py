"""Run a causal LM one decoder block at a time, so that memory holds one block whatever the depth.

Every family wires its blocks differently (rotary tables per layer type, sliding windows, alibi, scaled embeddings, capped logits). None
of that is written again here: the model's own forward runs with every block replaced by a stand-in that notes the arguments the
block would have been called with. The first stand-in's input is the embedding output; the last one can return any hidden state, and
what the model then does with it is the head. Stand-ins never look at token values, so the arguments depend on "batch seq" alone.

Weights outside the blocks (embedding, final norm, head) are read when their module is first called and dropped when the next phase
does not call it.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import LessenError
from lessen.models.checkpoint import Checkpoint
from lessen.models.skeleton import blocks_of, place

_REMEMBERED_SHAPES = 4


class Stream:
    """A checkpoint as a sequence: embed, block 0, block 1, ..., head.

    Attributes:
        blocks: number of decoder blocks.
        path: dotted path of their list (`model.layers`), so that block i's tensors start with `f"{path}.{i}."`.

    Args:
        device, dtype: where hidden states live and weights are put; buffers keep their own dtype as in an ordinary model.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        self.checkpoint, self.device, self.dtype = checkpoint, torch.device(device), dtype
        self._shell = checkpoint.skeleton().eval()
        if getattr(_text_config(self._shell), "hidden_size_per_layer_input", 0):
            got = f"{type(self._shell).__name__}, whose blocks read the tokens beside the hidden state"
            raise LessenError(checkpoint.label, got=got, wanted="blocks that read hidden states only")
        self.path, self._blocks = blocks_of(self._shell)
        self.blocks = len(self._blocks)
        if not self.blocks:
            raise LessenError(checkpoint.label, got="no decoder blocks", wanted="at least one")
        self._stand_ins = [_StandIn(block) for block in self._blocks]
        owner, _, name = self.path.rpartition(".")
        setattr(self._shell.get_submodule(owner), name, nn.ModuleList(self._stand_ins))
        self._accepted = inspect.signature(self._shell.forward).parameters
        self._tuples: bool | None = None
        self._calls: dict[tuple[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self._held: dict[str, nn.Parameter] = {}
        self._used: set[str] = set()
        for path, module in self._shell.named_modules():
            if any(parameter is not None for parameter in module._parameters.values()):
                module.register_forward_pre_hook(self._loader(path))
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    stored = f"{path}.{key}" if path else key
                    module._buffers[key] = self._cast(checkpoint.read(stored) if stored in checkpoint.names else buffer, buffer.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden states before the first block.

        Args:
            tokens: "batch seq", integer.

        Returns:
            "batch seq dim" in the stream's dtype.
        """
        if tokens.ndim != 2 or tokens.is_floating_point():
            got = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            raise LessenError(f"{self.checkpoint.label}: tokens", got=got, wanted="integers of shape batch seq")
        try:
            return self._until_first_block(input_ids=tokens.to(self.device))
        except IndexError as error:
            got = f"token ids up to {int(tokens.max())} in windows of {tokens.shape[1]}"
            wanted = f"ids and positions that the model has ({str(error).splitlines()[0]})"
            raise LessenError(
                f"{self.checkpoint.label}: tokens", got=got, wanted=wanted, remedy="use its own tokenizer, or less seq"
            ) from None

    def block(self, index: int) -> nn.Module:
        """Block `index` with its weights, a module of its own: drop it to free the memory."""
        block = copy.deepcopy(self._blocks[index])
        prefix = f"{self.path}.{index}."
        names = set(self.checkpoint.names)
        for name, tensor in list(block.state_dict(keep_vars=True).items()):
            if prefix + name in names or isinstance(tensor, nn.Parameter):
                place(block, name, self._cast(self.checkpoint.read(prefix + name), self.dtype))
        for module in block.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(self.device)
        return block.eval()

    def forward(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """One block, called as the model would call block `index`.

        Args:
            block: a module with the call signature of the model's blocks, such as `self.block(index)`.
            index: whose arguments (masks, rotary tables) to call it with.
            hidden: "batch seq dim".

        Returns:
            "batch seq dim".
        """
        args, kwargs = self._calls_for(hidden.shape[0], hidden.shape[1])[index]
        out = block(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states after the last block: final norm, output projection and whatever else the model does there.

        Args:
            hidden: "... dim".

        Returns:
            "... vocab".
        """
        rows = hidden.reshape(-1, 1, hidden.shape[-1]).to(self.device, self.dtype)
        self._returns_tuples()
        self._stand_ins[-1].answer = rows
        try:
            logits = _logits(self._run(**self._dummy(len(rows), 1)))
        finally:
            self._stand_ins[-1].answer = None
        return logits.reshape(*hidden.shape[:-1], -1)

    def release(self) -> None:
        """Drop the weights outside the blocks that are still held; they are read again when needed."""
        self._used = set()
        self._drop_unused()

    def _until_first_block(self, **inputs: Tensor) -> Tensor:
        self._stand_ins[0].stop = True
        try:
            self._run(**inputs)
        except _Reached as reached:
            self._drop_unused()
            return reached.hidden
        finally:
            self._stand_ins[0].stop = False
        raise LessenError(self.checkpoint.label, got=f"a forward that never calls {self.path}.0", wanted="one that calls every block")

    def _calls_for(self, batch: int, seq: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments of every block besides the hidden state, for hidden states "batch seq"."""
        if (batch, seq) not in self._calls:
            self._returns_tuples()
            self._stand_ins[-1].stop = True
            try:
                self._run(**self._dummy(batch, seq))
            except _Reached:
                pass
            finally:
                self._stand_ins[-1].stop = False
            if len(self._calls) >= _REMEMBERED_SHAPES:
                self._calls.pop(next(iter(self._calls)))
            self._calls[batch, seq] = [stand_in.take() for stand_in in self._stand_ins]
        return self._calls[batch, seq]

    def _returns_tuples(self) -> None:
        """Learn from the real first block, on one token, whether stand-ins must answer with a tuple."""
        if self._tuples is None:
            hidden = self._until_first_block(**self._dummy(1, 1))
            args, kwargs = self._stand_ins[0].take()
            self._tuples = isinstance(self.block(0)(hidden, *args, **kwargs), tuple)
            for stand_in in self._stand_ins:
                stand_in.tuples = self._tuples

    def _dummy(self, batch: int, seq: int) -> dict[str, Tensor]:
        """Inputs whose values do not matter; embeddings where the model takes them, so that its table need not be read."""
        if "inputs_embeds" in self._accepted and hasattr(self._shell, "get_input_embeddings"):
            width = self._shell.get_input_embeddings().weight.shape[1]  # pyright: ignore
            return {"inputs_embeds": torch.zeros(1, 1, width, device=self.device, dtype=self.dtype).expand(batch, seq, width)}
        return {"input_ids": torch.zeros(batch, seq, device=self.device, dtype=torch.int64)}

    def _run(self, **inputs: Tensor) -> Any:
        self._used = set()
        if "use_cache" in self._accepted:
            inputs["use_cache"] = False  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            out = self._shell(**inputs)
        self._drop_unused()
        return out

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)

    def _loader(self, path: str) -> Callable[[nn.Module, Any], None]:
        def fetch(module: nn.Module, _: Any) -> None:
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                name = f"{path}.{key}" if path else key
                name = self.checkpoint.tied.get(name, name)
                self._used.add(name)
                if name not in self._held:
                    self._held[name] = nn.Parameter(self._cast(self.checkpoint.read(name), self.dtype), requires_grad=False)
                module._parameters[key] = self._held[name]

        return fetch

    def _drop_unused(self) -> None:
        for name in self._held.keys() - self._used:
            held = self._held.pop(name)
            bare = nn.Parameter(torch.empty_like(held, device="meta"), requires_grad=False)
            for module in self._shell.modules():
                for key, parameter in module._parameters.items():
                    if parameter is held:
                        module._parameters[key] = bare


class _Reached(Exception):
    """Ends a forward at the block where nothing after it is wanted."""

    def __init__(self, hidden: Tensor):
        super().__init__("the wanted block was reached")
        self.hidden = hidden


class _StandIn(nn.Module):
    """Takes the place of a block: notes its call, passes the hidden state on, or gives `answer`, or stops the forward."""

    def __init__(self, block: nn.Module):
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a child: its tensors must not show up in the shell
        self.tuples: bool | None = None
        self.stop = False
        self.answer: Tensor | None = None
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask their blocks for such things as `attention_type`
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._call = (args, kwargs)
        if self.stop:
            raise _Reached(hidden_states)
        out = hidden_states if self.answer is None else self.answer
        return (out, None) if self.tuples else out

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call, self._call = self._call, ((), {})
        return call


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _logits(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out
    return out.logits if hasattr(out, "logits") else out[0]
