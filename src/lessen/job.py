"""A request turned into a job: the model opened, the recipe settled, the text read, every choice noted; and `plan`, which runs it."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lessen.calibration import Wish, amount, enough, settle, share
from lessen.core.event import Event, Listener
from lessen.core.strict import strict
from lessen.engine import dial as dials
from lessen.engine.journal import agree, clear
from lessen.engine.lock import alone
from lessen.engine.plan import Plan, check, decide, job, journal_at, passes
from lessen.engine.quantize import Text, candidates
from lessen.engine.widths import check_widths
from lessen.errors import UsageError
from lessen.export.price import USUAL, pricing
from lessen.models import open_checkpoint
from lessen.models.checkpoint import Checkpoint, stamps
from lessen.recipe import Dial, Recipe
from lessen.stats import data

if TYPE_CHECKING:
    from torch import nn

TOKENS = 16384


@dataclass
class Job:
    """What a run depends on.

    Attributes:
        source: the model.
        methods: the recipe, in order.
        text: calibration and held-out windows; None if no method looks at data.
        described: the calibration text in words and hashes, for the record.
        seed: of the windows that are drawn.
        settings: what else a resumed run must have in common with the one that began, by the names of the options.
        notes: choices made for the user.
    """

    source: Checkpoint
    methods: list[Any]
    text: Text | None
    described: dict[str, Any]
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def plan(self, work: Path, on_event: Listener | None = None) -> Plan:
        """Decide everything; finished steps are kept in `work` and found there again."""
        told = {"calibration": self.described["source"], "tokens": self.described.get("tokens"), "seed": self.seed}
        settings = {**self.settings, **told, "calibration windows": self.described.get("sha256")}
        plan = decide(self.source, self.methods, self.text, journal_at(work, self.source, self.methods, settings), on_event)
        return replace(plan, notes=tuple(self.notes))


@dataclass(frozen=True)
class Request:
    """What is to be done to a model: the questions that `lessen.compress` and `lessen.plan` have in common.

    Attributes:
        recipe: methods in order; None takes the default for `to`.
        to: size to reach ("70MB", "4bpw", "0.5x"); only without a recipe.
        calibration: text file or directory, "builtin", or token windows "windows seq"; None: what the recipe says, else built-in.
        tokens: how many calibration tokens (16384).
        seed: of everything random (0).
        written: share of the calibration windows that the model writes itself; see `lessen.calibration.settle`.
        embeddings: also round token table and head, to 8 bits, when the recipe quantizes linears and does not mention them.
        exports: formats whose files must meet `to`, beside the Hugging Face directory; None: GGUF and ONNX where they know the model
            and can meet it without coarser grids.
    """

    recipe: Recipe | Sequence[Any] | None = None
    to: Dial | str | None = None
    calibration: str | Path | Tensor | None = None
    tokens: int | None = None
    seed: int | None = None
    written: float | None = None
    embeddings: bool = True
    exports: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None and self.to is not None:
            raise UsageError("--to", got="a recipe as well", wanted="one of the two", remedy="leave out --to, or the recipe")
        for method in () if isinstance(self.recipe, Recipe) or self.recipe is None else self.recipe:
            if isinstance(method, type) or not hasattr(method, "scope"):
                wanted = "methods such as lessen.methods.GPTQ(bits=4)"
                raise UsageError("recipe", got=repr(method)[:80], wanted=wanted, remedy="lessen.recipe.parse reads methods from text")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError("seed", got=str(self.seed), wanted="a whole number from 0")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError("tokens", got=str(self.tokens), wanted="a positive number of calibration tokens")
        if self.written is not None and not 0 <= self.written <= 1:
            raise UsageError("written", got=f"{self.written:g}", wanted="a share from 0 to 1")

    @property
    def text(self) -> "str | Path | Tensor":
        """Where calibration text comes from."""
        return next(value for value in (self.calibration, _settings(self.recipe).calibration, "builtin") if value is not None)


def _settings(recipe: Any) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe(())


@dataclass(frozen=True)
class Settled:
    """A request held against a model: all that can be known before any text is read.

    Attributes:
        source: the model.
        methods: the recipe, in order.
        notes: choices made for the user.
        left_out: usual exports that cannot meet the size that was asked for.
    """

    source: Checkpoint
    methods: list[Any]
    notes: list[str]
    left_out: tuple[str, ...] = ()

    @property
    def looks_at_data(self) -> bool:
        """Whether any method asks for statistics, or candidates have to be compared."""
        return any(method.needs or len(candidates(method)) > 1 for method in self.methods)


def settled(ref: "str | Path | nn.Module", request: Request) -> Settled:
    """Open the model and settle the recipe: seconds, whatever the size.

    Raises:
        UsageError: a grid that does not fit, a size that cannot be reached. LessenError: a model that cannot be read.
    """
    source = open_checkpoint(ref)
    choice = _methods(source, request)
    _check_all(source, choice.methods)
    return Settled(source, choice.methods, choice.notes, choice.left_out)


def agrees(found: Settled, request: Request, work: Path) -> None:
    """Refuse a request that differs from the one whose finished steps `work` holds, as far as can be told before any text is read.

    Raises:
        UsageError: the option by name, with both values.
    """
    agree(work, job(found.source, found.methods, _settings_of(found, request)), partly=True)


def enough_text(found: Settled, request: Request) -> None:
    """Refuse a calibration text that cannot be read or is too short, before any other text is read and before the model runs.

    Raises:
        LessenError: what `prepare` would say of it.
    """
    if found.looks_at_data:
        enough(found.source, _wish(request))


def _settings_of(found: Settled, request: Request) -> dict[str, Any]:
    """What a resumed run must have in common with the one that began, known before any text is read."""
    wish = _wish(request)
    to = None if request.to is None else str(request.to)
    settings: dict[str, Any] = {"to": to, "seed": wish.seed, "model files": stamps(found.source)}
    if found.looks_at_data:
        settings["written"] = share(found.source, wish)[0]
        if not isinstance(wish.source, Tensor):
            count, length = amount(found.source, wish)
            settings["tokens"] = count * length
    return settings


def _wish(request: Request) -> Wish:
    settings = _settings(request.recipe)
    tokens = next(value for value in (request.tokens, settings.tokens, TOKENS) if value is not None)
    seed = next(value for value in (request.seed, settings.seed, 0) if value is not None)
    return Wish(request.text, tokens, seed, request.written)


def prepare(found: Settled, request: Request, cache: Path | None = None, on_event: Listener | None = None) -> Job:
    """Settle the rest that a run depends on: the text.

    Args:
        found: what `settled` gave for this request.
        request: what is to be done.
        cache: directory that keeps what the model wrote, for the same call again.
        on_event: hears of the model's writing.

    Raises:
        UsageError: too few windows. LessenError: a text that cannot be read.
    """
    wish, settings = _wish(request), _settings_of(found, request)
    if on_event:
        for note in found.notes:
            on_event(Event("choose", 0, 0, note))
    if not isinstance(request.text, Tensor) and not found.looks_at_data:
        return Job(found.source, found.methods, None, {"source": "none: no method looks at data"}, wish.seed, settings, found.notes)
    if on_event:
        on_event(Event("calibrate", 0, 0, "reading the text, and letting the model write its share"))
    text, described = settle(found.source, wish, cache, on_event)
    return Job(found.source, found.methods, text, described, wish.seed, settings, found.notes + described.pop("notes"))


@strict(Request)
def plan(
    ref: "str | Path | nn.Module",
    *,
    work: str | Path | None = None,
    fresh: bool = False,
    on_event: Listener | None = None,
    **request: Any,
) -> Plan:
    """Make every decision of a recipe and change nothing.

    Args:
        ref: see `lessen.open_checkpoint`.
        work: where decisions are kept, block by block; the same call again goes on there. None: a fresh temporary directory.
        fresh: forget decisions that are kept in `work`.
        on_event: hears of every block.
        request: `recipe`, `to`, `calibration`, `tokens`, `seed`, `written`, `embeddings` as in `Request`.

    Returns:
        Edits and records; `lessen.apply(model, plan.edits)` carries them out.

    Raises:
        UsageError: a request that makes no sense. LessenError: another run in `work`, a model or text that cannot be read.
    """
    asked = Request(**request)
    folder = Path(work or tempfile.mkdtemp(prefix="lessen-"))
    if work is None:  # decisions are read from there for as long as the process lives
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with alone(folder):
        if fresh:
            clear(folder)
        found = settled(ref, asked)
        agrees(found, asked, folder)
        enough_text(found, asked)
        return prepare(found, asked, folder, on_event).plan(folder, on_event)


def _methods(source: Checkpoint, request: Request) -> dials.Choice:
    recipe, to, embeddings, exports = request.recipe, request.to, request.embeddings, request.exports
    if recipe is None and to is None:
        choice = dials.Choice(*dials.default(source))
    elif recipe is None and to is not None:
        spare = USUAL if exports is None else ()
        choice = dials.solve(source, Dial.parse(to) if isinstance(to, str) else to, pricing(source, exports), spare, embeddings)
    else:
        methods, notes = list(recipe or ()), []
        kinds = {kind for method in methods for kind in _kinds(method)}
        if embeddings and kinds & {"linear", "inputs"} and "embedding" not in kinds:
            tables, notes = dials.table_method(source)
            first = next(i for i, method in enumerate(methods) if _kinds(method) & {"linear", "inputs"})
            methods[first:first] = tables
        choice = dials.Choice(methods, notes)
    if not embeddings:
        choice = replace(choice, methods=[method for method in choice.methods if "embedding" not in _kinds(method)])
    return choice


def _kinds(method: Any) -> set[str]:
    return {candidate.kind for candidate in candidates(method)}


def _check_all(source: Checkpoint, methods: Sequence[Any]) -> None:
    for group in passes(methods):
        if group[0].scope == "block":
            check(source, group)
    check_widths(source, methods)


def overlap_check(job: Job, evaluation: Mapping[str, Tensor]) -> None:
    """Refuse evaluation windows that share text with the calibration windows.

    Raises:
        LessenError: names the text and what is shared.
    """
    if job.text is not None:
        for windows in (job.text.calibration, job.text.heldout):
            data.check_disjoint(windows, evaluation)
