"""A network with what is asked of it on a chip: the data that sets its converters, and what judges it.

What it is decides how it is judged, unless a function of the user's does:

    language models    perplexity on held-out text; mean KL and top-1 agreement with the digital model at the same tokens
    all others         signal-to-noise ratio of the outputs and top-1 agreement with the digital model, and accuracy where data has labels

The digital model's answers are computed once. Whatever was chosen for the user is said in `notes`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.analog.run.judges import Asked, Evaluate, Metric, OnBatches, OnText
from lessen.core.modules import evaluating
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError, one_line
from lessen.evaluate import texts
from lessen.models import load, open_checkpoint
from lessen.models.inputs import example_inputs
from lessen.models.module import InMemory, imported
from lessen.stats import data
from lessen.stats.text import builtin

WINDOW, WINDOWS, CALIBRATION_WINDOWS = 256, 4, 4


@dataclass(frozen=True)
class Data:
    """What a network is calibrated on and judged by; whatever is left out is chosen."""

    calibration: str | Path | None = None
    """Text that sets the converters of a language model: a .txt or .jsonl file, a directory of them; None: built-in text."""
    batches: str | Iterable[Any] | None = None
    """Inputs of any other model: batches, or `module:name` of such or of a function that returns some."""
    eval: Sequence[str | Path] = ()
    """Held-out text on which a language model is judged; empty: built-in text."""
    evaluate: str | Evaluate | None = None
    """Judges a model instead: a function of it, or `module:function`; returns a number, or numbers by name, the first of which counts."""
    better: Literal["lower", "higher"] = "higher"
    """Whether lower or higher numbers of `evaluate` are better."""
    choose: str | Evaluate | None = None
    """Judges likewise where a method has to choose, on other data than `evaluate`; not needed without `evaluate`."""
    windows: int = WINDOWS
    """Windows of each text that are scored."""
    length: int | None = None
    """Tokens in a window; None: 256, or the model's context if that is shorter."""
    seed: int = 0
    """Of the calibration windows."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.choose is not None and self.evaluate is None:
            raise UsageError(
                "--choose", got="a judge for choices alone", wanted="--evaluate with it", remedy="both are functions of a model"
            )
        if self.windows < 1 or (self.length is not None and self.length < 2):
            raise UsageError("data", got=f"windows={self.windows}, length={self.length}", wanted="at least 1 window of 2 tokens")

    @property
    def asked(self) -> dict[str, Any]:
        """As plain data, to tell whether a run that is gone on with asked for the same."""
        spelt = {name: getattr(self, name) for name in ("better", "windows", "length", "seed")}
        named = {"calibration": self.calibration, "batches": self.batches, "evaluate": self.evaluate, "choose": self.choose}
        shown = {name: _spelt(value) for name, value in named.items()}
        return spelt | shown | {"eval": [str(e) for e in self.eval]}


@dataclass
class Subject:
    """A network and what is asked of it.

    Attributes:
        label: what to call it.
        model: the digital model, in evaluation mode.
        calibration: batches that set converters.
        evaluate: judges a model.
        metrics: what it says, the one that counts first.
        language: whether it writes text.
        example: inputs of one inference (its first row counts as one), for the cost; None for language models.
        notes: what was chosen for the user.
        tokenizer: of a language model.
        chooser: makes what judges where a method has to choose: on calibration data, so that what is reported is of other data.
    """

    label: str
    model: nn.Module
    calibration: list[Any]
    evaluate: Evaluate
    metrics: tuple[Metric, ...]
    language: bool
    example: Any = None
    notes: list[str] = field(default_factory=list)
    tokenizer: Any = None
    chooser: Callable[[], Evaluate] | None = None

    @property
    def metric(self) -> Metric:
        """The one that counts."""
        return self.metrics[0]

    def judge(self, model: nn.Module) -> float:
        """The number that counts."""
        found = self.evaluate(model)
        return float(found[self.metric.name] if isinstance(found, Mapping) else found)

    def choice(self) -> Callable[[nn.Module], float]:
        """A judge of the number that counts, on data that the record is not of."""
        judge = self.evaluate if self.chooser is None else self.chooser()

        def prefer(model: nn.Module) -> float:
            found = judge(model)
            return float(next(iter(found.values())) if isinstance(found, Mapping) else found)

        return prefer

    def identity(self) -> Any:
        """What decides every figure: weights, what sets the converters, what judges."""
        return self.model, self.calibration, self.evaluate, self.metrics

    def facts(self) -> dict[str, Any]:
        """What a record says of the model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"label": self.label, "architecture": type(self.model).__name__, "parameters": parameters, "language": self.language}


def opened(ref: str | Path | nn.Module) -> tuple[nn.Module, str]:
    """The model that is meant, in float32 and evaluation mode, and what to call it; a module in memory is taken as it is."""
    if isinstance(ref, nn.Module):
        return ref.eval(), type(ref).__name__
    model = load(ref, torch.float32).eval()
    return model, Path(ref).name if Path(ref).expanduser().exists() else str(ref)


def subject(ref: str | Path | nn.Module, asked: Data | None = None) -> Subject:
    """Open a model and find out how it is judged.

    Args:
        ref: what `lessen.load` takes.
        asked: data and judge.

    Raises:
        UsageError: data of the wrong kind, or none where it cannot be guessed. LessenError: data that cannot be read.
    """
    asked = asked or Data()
    model, label = opened(ref)
    made = _language(ref, model, label, asked) if writes(model) and asked.batches is None else _other(model, label, asked)
    return _judged_by(made, asked) if asked.evaluate is not None else made


def writes(model: nn.Module) -> bool:
    """Whether a model writes text."""
    return bool(hasattr(model, "can_generate") and model.can_generate() and "input_ids" in _arguments(model))  # pyright: ignore[reportCallIssue]


def _arguments(model: nn.Module) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


def bare(ref: str | Path | nn.Module, batches: str | Iterable[Any] | None = None) -> Subject:
    """A model whose cost is asked for and nothing else: no text is read, nothing judges.

    Args:
        ref: what `lessen.load` takes.
        batches: inputs of a model that does not tell its own.
    """
    model, label = opened(ref)
    if writes(model) and batches is None:
        return Subject(label, model, [], _silent, (), True, notes=tied(model))
    return Subject(label, model, [], _silent, (), False, _example(model, label) if batches is None else batches_of(batches)[0])


def _silent(model: nn.Module) -> dict[str, float]:
    return {}


def _example(model: nn.Module, label: str) -> Any:
    example = example_inputs(model, label)
    return example if isinstance(example, Mapping | Tensor) else example[0]


def tied(model: nn.Module) -> list[str]:
    """What to know of a head that is the token table."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    table = getattr(model, "get_input_embeddings", lambda: None)()
    if head is None or table is None or head.weight is not table.weight:
        return []
    return ["The head shares its weights with the token table: the table stays digital, the head lies on tiles unless --split keeps it."]


def _language(ref: str | Path | nn.Module, model: nn.Module, label: str, asked: Data) -> Subject:
    notes: list[str] = []
    source = InMemory(model, label) if isinstance(ref, nn.Module) else open_checkpoint(ref)
    tokenizer = source.tokenizer()
    limit = int(source.config.get("max_position_embeddings") or source.config.get("n_positions") or WINDOW)
    length = asked.length or min(WINDOW, limit)
    if asked.calibration is None or str(asked.calibration) == "builtin":
        text = builtin("calibration")
        notes.append(f"Converters are set on {CALIBRATION_WINDOWS} windows of {length} tokens of built-in text (--calibration).")
    else:
        text = data.read_text(asked.calibration)
    calibration = data.windows(tokenizer, text, CALIBRATION_WINDOWS, length, asked.seed)
    if asked.evaluate is not None:
        held: dict[str, Tensor] = {}
    elif asked.eval:
        held = texts.read(tokenizer, [*asked.eval], windows=asked.windows, length=length).tokens
    else:
        docs = builtin("evaluation")
        held = {docs.name: data.sequential_windows(tokenizer, docs, length, at_most=asked.windows)}
    for name, ids in held.items():
        notes.append(f"Judged on {len(ids)} windows of {length} tokens of {name} (--windows, --eval): few, so that chips can be many.")
    notes += tied(model)
    judge, choose = OnText(model, held), partial(OnText, model, {"calibration": calibration})
    return Subject(label, model, list(calibration.split(1)), judge, judge.metrics, True, None, notes, tokenizer, choose)


def _other(model: nn.Module, label: str, asked: Data) -> Subject:
    notes: list[str] = []
    if asked.calibration is not None or asked.eval:
        got, remedy = f"text for {label}", "give its data with --batches package.module:name"
        raise UsageError(
            "--calibration" if asked.calibration is not None else "--eval", got=got, wanted="a model that writes text", remedy=remedy
        )
    if asked.batches is None:
        batches = [_example(model, label)]
        notes.append("Converters are set and outputs compared on the model's example inputs, which are no data: give some with --batches.")
    else:
        batches = batches_of(asked.batches)
    first = max(1, len(batches) // 4)
    calibration, held = (batches[:first], batches[first:]) if len(batches) > 1 else (batches, batches)
    if len(batches) > 1:
        notes.append(f"Converters are set on the first {first} of {len(batches)} batches, outputs are compared on the others.")
    elif asked.batches is not None:
        notes.append("One batch sets the converters and is judged on as well.")
    judge = OnBatches(model, held if asked.evaluate is None else [])
    choose = partial(OnBatches, model, calibration)
    return Subject(label, model, calibration, judge, judge.metrics, False, batches[0], notes, chooser=choose)


def batches_of(given: str | Iterable[Any]) -> list[Any]:
    """Batches, from `module:name` if that is what is given."""
    if isinstance(given, Tensor):
        return [given]
    if not isinstance(given, str):
        found = list(given)
    else:
        if ":" not in given:
            raise UsageError("--batches", got=repr(given), wanted="package.module:name")
        source: Any = imported(given)
        try:
            made: Any = source() if callable(source) else source
            found = [made] if isinstance(made, Tensor) else list(made)
        except Exception as error:
            raise LessenError(given, got=one_line(error), wanted="batches, or a function that returns some") from error
    if not found:
        raise UsageError("batches", got="none", wanted="at least one")
    return found


def _judged_by(made: Subject, asked: Data) -> Subject:
    """The same with the user's own judge."""
    judge = _asked(asked.evaluate, "--evaluate")
    label, other = judge.label, None if asked.choose is None else _asked(asked.choose, "--choose")
    with torch.no_grad(), evaluating(made.model):
        first = judge(made.model)
    names = list(first) if isinstance(first, Mapping) else ["quality"]
    metrics = tuple(Metric(name, name.replace("_", " "), asked.better) for name in names)
    notes = [*made.notes, f"{label} judges; {asked.better} numbers are taken as better (--better)."]
    return replace(made, evaluate=judge, metrics=metrics, notes=notes, chooser=None if other is None else lambda: other)


def _asked(judge: Any, option: str) -> Asked:
    """A function of the user's."""
    label = getattr(judge, "__name__", "quality")
    if isinstance(judge, str):
        if ":" not in judge:
            raise UsageError(option, got=repr(judge), wanted="package.module:function")
        label, judge = judge, imported(judge)
    if not callable(judge):
        raise UsageError(str(label), got=type(judge).__name__, wanted="a function of a model")
    return Asked(judge, str(label))


def _spelt(value: Any) -> str | None:
    return None if value is None else str(value) if isinstance(value, str | Path) else f"{type(value).__name__} in memory"
