"""The work of a search: which design is next, who judges it, where its result is kept. What it is for stands in `explore`.

A trial of Optuna is a design. Its state tells what became of it: complete (judged), failed with a reason in `refused` (such a chip does not
exist, or the network does not fit on it) or in `broken` (a function of the caller broke; tried again by the next run). Trials without
either are repetitions that nobody judged, or belong to processes that were killed; they count for nothing.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite, prod
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

from lessen.analog.chip import Chip
from lessen.analog.cost.result import Cost
from lessen.analog.search.change import changed
from lessen.core.digest import digest
from lessen.core.event import Event, Listener
from lessen.core.strict import check_fields
from lessen.errors import LessenError, UsageError, one_line

Quality = Callable[[Chip], float]
"""Judges a chip: more is better. `analog.simulate` on a mapped network gives one."""


@dataclass(frozen=True)
class Range:
    """Any number between two ends."""

    low: float
    """Lowest value."""
    high: float
    """Highest value."""
    log: bool = False
    """Whether its logarithm is spread evenly."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high and not (self.log and self.low <= 0)):
            got = f"low={self.low:g}, high={self.high:g}, log={self.log}"
            raise UsageError("Range", got=got, wanted="two finite ends in order, above 0 on a logarithmic scale")


Space = Mapping[str, Sequence[Any] | Range]
"""What varies: fields of a chip by path (`adc.bits`, `device`), and their values."""


@dataclass(frozen=True)
class Search:
    """How much is tried, and by whom."""

    trials: int = 100
    """Designs in all, those of earlier runs on the same storage among them."""
    workers: int = 1
    """Processes."""
    storage: str | Path | None = None
    """Keeps finished designs: NAME.db (SQLite), NAME.log (a journal, also for network file systems), or the address of a database."""
    seed: int = 0
    """Of the order of designs; several processes keep to it only in part."""
    backend: Literal["processes", "ray"] = "processes"
    """Who runs the workers: this machine, or a Ray cluster, whose machines all must reach the storage."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.trials < 1 or self.workers < 1:
            raise UsageError("Search", got=f"trials={self.trials}, workers={self.workers}", wanted="at least one of each")
        if self.backend == "ray" and self.storage is None:
            raise UsageError("Search", got='backend="ray" without storage', wanted="a storage that all machines reach")


@dataclass(frozen=True)
class Task:
    """What is searched, and how."""

    quality: Quality | None
    price: Callable[[Chip], Cost]
    base: Chip
    space: Mapping[str, tuple[Any, ...] | Range]
    search: Search

    @property
    def asked(self) -> dict[str, Any]:
        """What a storage must have been made for."""
        judged = getattr(self.quality, "func", self.quality)
        return {
            "space": {path: asdict(v) if isinstance(v, Range) else list(map(label, v)) for path, v in self.space.items()},
            "base": repr(self.base),
            "quality": None if judged is None else getattr(judged, "__qualname__", type(judged).__qualname__),
            "network, judge or data": digest(self.quality),
            "price": digest(self.price),
        }

    @property
    def size(self) -> int | None:
        """Designs in all; None if a range makes them countless."""
        values = list(self.space.values())
        return None if any(isinstance(v, Range) for v in values) else prod(len(v) for v in values if not isinstance(v, Range))


def label(value: Any) -> Any:
    """A value as it is stored and shown."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise LessenError("explore", got="no optuna", wanted="the package", remedy="pip install lessen[explore]") from None
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells every trial on stderr; for the while it does not."""
    logging = _optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def study_of(task: Task) -> Any:
    """The study in a task's storage, made if need be."""
    optuna = _optuna()
    directions = [*(() if task.quality is None else ("maximize",)), "minimize", "minimize"]
    return optuna.create_study(storage=_storage(task.search.storage), study_name="lessen", directions=directions, load_if_exists=True)


def _storage(where: str | Path | None) -> Any:
    if where is None:
        return None
    text = str(where)
    if "://" in text:
        return text
    path = Path(where).resolve()
    if path.suffix not in (".db", ".log"):
        raise UsageError("storage", got=repr(text), wanted="NAME.db, NAME.log or the address of a database")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".db":
        return f"sqlite:///{path}"
    storages = _optuna().storages
    backend = storages.journal.JournalFileBackend(str(path), lock_obj=storages.journal.JournalFileOpenLock(str(path)))
    return storages.JournalStorage(backend)


def check_same(study: Any, task: Task) -> None:
    """Refuse a storage that was made for another search; mark an empty one."""
    held = study.user_attrs.get("asked")
    if held is None:
        study.set_user_attr("asked", task.asked)
        return
    other = [key for key, value in task.asked.items() if held.get(key) != value]
    if other:
        raise UsageError(
            f"storage {task.search.storage}", got=f"a search with another {other[0]}", wanted="the same search, or another file"
        )


def finished(study: Any) -> list[Any]:
    """Trials with a result, judged or refused for good; of a design that two processes tried at once, the first."""
    ready = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" or "refused" in t.user_attrs]
    return sorted({_key(t.params): t for t in reversed(ready)}.values(), key=lambda t: t.number)


def run(study: Any, task: Task, on_event: Listener | None) -> None:
    """Try designs until there are as many as were asked for, or as there are."""
    search, wanted = task.search, task.search.trials if task.size is None else min(task.search.trials, task.size)
    before, start = -1, len(study.get_trials(deepcopy=False))
    while (done := len(finished(study))) < wanted:
        if done == before:
            raise LessenError("explore", got=f"{done} of {wanted} designs and no progress", wanted="workers that live")
        again, before, missing = before >= 0, done, wanted - done
        few = again and missing < search.workers  # of designs that two processes tried at once: no process is worth starting for them
        if search.backend == "processes" and (search.workers == 1 or few):
            _work(task, 0, missing, study, on_event)
        else:
            shares = [missing // search.workers + (i < missing % search.workers) for i in range(search.workers)]
            jobs = [(task, i, share) for i, share in enumerate(shares) if share]
            if search.backend == "ray":
                _on_ray(jobs)
            else:
                _on_processes(jobs, study, wanted, on_event)
        broken = [t.user_attrs["broken"] for t in study.get_trials(deepcopy=False) if "broken" in t.user_attrs and t.number >= start]
        if broken:
            raise LessenError(
                "explore", got=broken[-1], wanted="a quality and a price for every design", remedy="finished designs are kept"
            )


def _work(task: Task, worker: int, count: int, study: Any = None, on_event: Listener | None = None) -> None:
    """Try `count` designs; a function that breaks ends it."""
    optuna = _optuna()
    own = study is None
    if own:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a process of our own
        study = study_of(task)
    total = len(finished(study)) + count
    while count:
        known = {_key(t.params) for t in finished(study)}
        seed = random.Random(repr((task.search.seed, worker, len(known)))).getrandbits(32)
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=task.search.workers > 1)
        trial = study.ask()
        choices = {path: _suggest(trial, path, values) for path, values in task.space.items()}
        if _key(trial.params) in known:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if (untried := _untried(task, known, seed)) is None:
                return  # other workers have done the rest
            study.enqueue_trial(untried)
            continue
        if not _try(study, trial, task, choices):
            return
        if any(_key(t.params) == _key(trial.params) and t.number != trial.number for t in finished(study)):
            continue  # another process was at it too, and began first
        count -= 1
        if on_event is not None:
            done = total - count
            on_event(Event("explore", done, total, ", ".join(f"{path} {label(value)}" for path, value in choices.items())))


def _suggest(trial: Any, path: str, values: tuple[Any, ...] | Range) -> Any:
    if isinstance(values, Range):
        return trial.suggest_float(path, values.low, values.high, log=values.log)
    bylabel = {repr(label(v)): v for v in values}
    return bylabel[repr(trial.suggest_categorical(path, [label(v) for v in values]))]


def _untried(task: Task, known: set[str], seed: int) -> dict[str, Any] | None:
    """A design that was not tried, at random; None if there is none."""
    draw = random.Random(seed)
    if task.size is None or task.size > 100_000:
        while True:
            choices = {p: _drawn(v, draw) for p, v in task.space.items()}
            if _key(choices) not in known:
                return choices
    lists = [[label(v) for v in values] for values in task.space.values() if not isinstance(values, Range)]
    left = [c for values in itertools.product(*lists) if _key(c := dict(zip(task.space, values, strict=True))) not in known]
    return draw.choice(left) if left else None


def _drawn(values: tuple[Any, ...] | Range, draw: random.Random) -> Any:
    if not isinstance(values, Range):
        return label(draw.choice(values))
    return values.low * (values.high / values.low) ** draw.random() if values.log else draw.uniform(values.low, values.high)


def _key(choices: Mapping[str, Any]) -> str:
    return repr(sorted(choices.items()))


def _try(study: Any, trial: Any, task: Task, choices: Mapping[str, Any]) -> bool:
    """Judge one design and tell the study; whether the functions held."""
    failed = _optuna().trial.TrialState.FAIL
    try:
        chip = changed(task.base, choices)
        priced = task.price(chip)
        quality = None if task.quality is None else float(task.quality(chip))
        values = [*(() if quality is None else (quality,)), priced.energy_pj, priced.area.total]
        if not all(map(isfinite, values)):
            raise LessenError("design", got=f"figures {values}", wanted="finite numbers")
    except LessenError as error:
        trial.set_user_attr("refused", str(error))
        study.tell(trial, state=failed)
        return True
    except Exception as error:  # of the caller's functions: the search ends, what is finished stays
        trial.set_user_attr("broken", one_line(error))
        study.tell(trial, state=failed)
        return False
    trial.set_user_attr("latency_ns", priced.latency_ns)
    study.tell(trial, values)
    return True


def _on_processes(jobs: Sequence[tuple[Task, int, int]], study: Any, wanted: int, on_event: Listener | None) -> None:
    try:
        ForkingPickler.dumps(jobs[0])
    except Exception as error:
        got = one_line(error)
        raise UsageError("explore(workers)", got=got, wanted="functions that stand in a module", remedy="or workers=1") from None
    context = get_context("spawn")
    processes = [context.Process(target=_work, args=job, daemon=True) for job in jobs]
    told = len(finished(study))
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(0.2)
            if on_event is not None and (done := len(finished(study))) > told:
                told = done
                on_event(Event("explore", done, wanted))
        if on_event is not None and (done := len(finished(study))) > told:
            on_event(Event("explore", done, wanted))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()


def _on_ray(jobs: Sequence[tuple[Task, int, int]]) -> None:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        remedy = 'pip install ray, or backend="processes"'
        raise LessenError('explore(backend="ray")', got="no ray", wanted="the package", remedy=remedy) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(_work)
    ray.get([remote.remote(*job) for job in jobs])
