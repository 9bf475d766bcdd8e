"""Pruning a person-search network to 70, 50 and 30 % of its multiply-accumulates: SAMP-style against other rankings.

The network (`lessen.models.person_search`) is trained here from a seed, on two materials: rendered scenes, whose boxes and identities are
exact; and a real surveillance video whose boxes and identities are pseudo labels. Neither is comparable with figures on CUHK-SYSU or PRW,
which cannot be had here; the readers and the protocol are those of these sets.

Seed 0 is the development seed: what SAMP-style is made of was chosen on it, its rows are shown, and the goals leave them out. The goals are
means over seeds 1 and 2, of which nothing was looked at before; a seed decides the weights, the order of samples, and in the scenes
everybody and everything that is seen. The video is one and the same for all seeds.

Every method gets the same network, the same budget, the same samples to look at, the same floor (every layer keeps a tenth of its
channels), the same five rounds where it looks at samples (a fifth of the budget, then scores anew), and the same training afterwards. The
ranking is all that differs, and for SAMP-style the loss of the training: AdaptiveOIM instead of OIM. Its formulae are ours, the paper's are
not public. Scores from gradients are divided by the multiply-accumulates that leave with a channel.

    uniform         every layer loses the same share; within a layer the smallest weights go
    magnitude       one ranking of all channels by their weights, divided by the layer's mean
    Taylor          |switch gradient| of the sum of both losses, in rounds and at once
    Group-Fisher    squared switch gradient of the sum of both losses, in rounds and at once
    SAMP-style      squared switch gradient of each loss by itself, normalised, merged, layers balanced, in rounds

Figures of every row: AP and recall of detection, mAP and top-1 of search, before and after the training. Before means: nothing trained,
but the batch norms' statistics taken again, without labels, from the samples that were looked at; with the old ones every method scores 0.
"""

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lessen
from benchmarks import assets
from benchmarks.harness import Goal, Row, Session, at_least
from benchmarks.person_search import scenes, training, video
from lessen.methods import SAMP, Fisher, Magnitude, Taylor
from lessen.models.person_search import PersonSearchNet, person_search_net
from lessen.recover.oim import OIM, AdaptiveOIM
from lessen.stats.person_search import PersonSearch
from lessen.structure.trace import Structure
from lessen.targets.profile import macs

NET = {"widths": (12, 20, 40, 80), "neck": 48, "heads": (32, 48), "embedding": 64}
REMOVED = (50, 30, 70)
SAMP_STYLE = "SAMP-style"
ROUNDS = 5
IN_ROUNDS = ", in rounds"
OTHERS = ("uniform", "magnitude", f"Taylor{IN_ROUNDS}", f"Group-Fisher{IN_ROUNDS}")
AT_ONCE = ("Taylor", "Group-Fisher")  # the same two on the first scores alone: compared as well where they were measured
DEVELOPMENT, FRESH = 0, (1, 2)
MATERIALS = ("scenes", "video")
# What SAMP-style is made of, each changed by itself, at 50 % on the development seed.
VARIANTS: dict[str, dict[str, Any]] = {
    "merge sum": {"merge": "sum"},
    "merge harmonic": {"merge": "harmonic"},
    "merge rank": {"merge": "rank"},
    "layers not balanced": {"slack": None},
    "layers alike": {"across": "layer"},
    "one round": {},
    "plain OIM": {},
}


@dataclass(frozen=True)
class Plan:
    """How much work one material is: steps and batch of the training before and after pruning, samples to score channels on."""

    steps: int
    recovery: int
    batch: int
    samples: int = 48
    rate: float = 3e-3
    recovery_rate: float = 1e-3
    queue: int = 64


PLANS = {"scenes": Plan(450, 60, 8), "video": Plan(200, 60, 6)}
SMOKE, SMOKE_PLAN = scenes.Sizes(6, 8, 4, 6), Plan(2, 1, 4, 2)


@dataclass
class Trained:
    """A material with the full network that was trained on it."""

    data: PersonSearch
    net: PersonSearchNet
    oim: OIM
    plan: Plan
    seed: int
    structure: Structure | None = None
    cpu_seconds: float = 0.0  # that the training took

    @property
    def example(self) -> torch.Tensor:
        return self.data.read(self.data.test[0].name)[None]


def rows(session: Session) -> Iterator[Row | None]:
    """Fresh seeds first, the budget that tells most first; the development seed last."""
    if session.smoke:
        yield from _rows(session, Cell("scenes", DEVELOPMENT, True), 50, (*OTHERS, SAMP_STYLE, *AT_ONCE))
        return
    cells = [Cell(of, seed) for seed in FRESH for of in MATERIALS]
    development = [Cell(of, DEVELOPMENT) for of in MATERIALS]
    for methods, where in (((*OTHERS, SAMP_STYLE), cells), (AT_ONCE, cells), ((*OTHERS, SAMP_STYLE, *AT_ONCE), development)):
        for percent in REMOVED:
            for cell in where:
                yield from _rows(session, cell, percent, methods)
    for cell in development:
        yield from _rows(session, cell, 50, [f"{SAMP_STYLE}, {variant}" for variant in VARIANTS])


def _rows(session: Session, cell: "Cell", percent: int, methods: Sequence[str]) -> Iterator[Row | None]:
    """The rows of one network and budget, and once the full network's."""
    head = {"material": cell.material, "seed": cell.seed}
    name = f"{cell.material} seed {cell.seed}"
    if percent == 50 and SAMP_STYLE in methods:
        yield session.row(f"{name} full", lambda: _full(cell.trained) | head)
    for method in methods:
        yield session.row(
            f"{name} {percent}% {method}",
            lambda method=method: head | {"removed": percent, "method": method} | _pruned(cell.trained, method, percent),
        )


@dataclass
class Cell:
    """A material with a seed; its network is trained, or read, when it is first asked for."""

    material: str
    seed: int
    smoke: bool = False

    @cached_property
    def trained(self) -> Trained:
        data = video.dataset() if self.material == "video" else scenes.dataset(self.seed, SMOKE if self.smoke else scenes.Sizes())
        return trained(data, SMOKE_PLAN if self.smoke else PLANS[self.material], self.seed, self.material, self.smoke)


def trained(data: PersonSearch, plan: Plan, seed: int, material: str, smoke: bool) -> Trained:
    """The full network, from the cache if it has been trained before."""
    text = json.dumps([NET, plan.steps, plan.batch, plan.rate, plan.queue, len(data.train), data.people])
    path = assets.cache() / "person-search" / f"{material}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    found = Trained(data, person_search_net(seed, **NET), OIM(data.people, NET["embedding"], plan.queue), plan, seed)
    both = nn.ModuleDict({"net": found.net, "oim": found.oim})
    if path.exists() and not smoke:
        both.load_state_dict(load_file(path))
    else:
        started = time.process_time()
        training.train(found.net, training.Tasks(found.oim), data, steps=plan.steps, batch=plan.batch, rate=plan.rate, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".aside")
        cost = {"cpu_seconds": f"{time.process_time() - started:.1f}"}
        save_file({name: value.contiguous() for name, value in both.state_dict().items()}, aside, metadata=cost)
        aside.replace(path)
    with safe_open(path, "pt") as file:
        found.cpu_seconds = float(file.metadata()["cpu_seconds"])
    found.net.eval()
    return found


def _full(found: Trained) -> Row:
    figures = training.score(found.net, found.data)
    whole = macs(found.net, lambda: found.net(found.example), ()).whole
    sizes = {"macs": round(whole), "parameters": sum(p.numel() for p in found.net.parameters())}
    return {
        "method": "full network",
        "removed": 0,
        "after": figures,
        **sizes,
        "people": found.data.people,
        "cpu_seconds": found.cpu_seconds,
    }


def _pruned(found: Trained, method: str, percent: int) -> Row:
    """Prune, score, train, score."""
    started = time.process_time()
    if found.structure is None:
        found.structure = lessen.trace(found.net, found.example)
    adaptive = method.startswith(SAMP_STYLE) and not method.endswith("plain OIM")
    smaller, sizes = _uniform(found, percent) if method == "uniform" else _ranked(found, method, percent, adaptive)
    training.renew_norms(smaller, _batches(found, 8))
    pruning = time.process_time()
    before = training.score(smaller, found.data)
    oim = AdaptiveOIM(found.oim) if adaptive else copy.deepcopy(found.oim)
    plan = found.plan
    training.train(
        smaller, training.Tasks(oim), found.data, steps=plan.recovery, batch=plan.batch, rate=plan.recovery_rate, seed=found.seed + 1
    )
    after = training.score(smaller, found.data)
    return {**sizes, "before": before, "after": after, "prune_cpu_seconds": round(pruning - started, 1), **_cost(started)}


def _cost(started: float) -> Row:
    return {"cpu_seconds": round(time.process_time() - started, 1)}


def _ranked(found: Trained, method: str, percent: int, adaptive: bool) -> tuple[nn.Module, Row]:
    """The network without `percent` % of its multiply-accumulates, by a ranking of all channels."""
    name, _, variant = method.partition(", ")
    tasks = training.Tasks(AdaptiveOIM(found.oim) if adaptive else found.oim, learn=False)
    ask: Any = tasks.objective if name == SAMP_STYLE else lambda model, batch: tasks.total(training.run(model, batch), batch)
    chosen: dict[str, Any] = {
        "magnitude": Magnitude(across="model", normalise="mean", partition="unit"),
        "Taylor": Taylor(at="switch", per="cost", recompute=False),
        "Group-Fisher": Fisher(per="cost", recompute=False),
        SAMP_STYLE: SAMP(per="cost", recompute=False),
    }
    made = lessen.prune(
        found.net,
        found.example,
        _batches(found, 1),
        method=replace(chosen[name], **VARIANTS.get(variant, {})),
        to=f"{percent}% macs",
        losses=ask,
        units=found.structure,
        prove=False,
        rounds=ROUNDS if f", {variant}" == IN_ROUNDS or (name == SAMP_STYLE and variant != "one round") else 1,
    )
    return made.model, _sizes(made)


def _batches(found: Trained, size: int) -> list[dict[str, torch.Tensor]]:
    """The samples that pruning may look at, the same for all methods."""
    samples = training.Samples(found.data)
    stride = len(samples) // found.plan.samples | 1  # odd: mirrored samples as well
    chosen = [samples[place * stride % len(samples)] for place in range(found.plan.samples)]
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [{key: torch.stack([sample[key] for sample in part]) for key in part[0]} for part in parts]


def _uniform(found: Trained, percent: int) -> tuple[nn.Module, Row]:
    """Every layer loses the same share of its channels, the one that leaves the multiply-accumulates that are wanted."""
    wanted = (1 - percent / 100) * macs(found.net, lambda: found.net(found.example), ()).whole
    low, high = 0.0, percent / 100
    tried: list[tuple[float, float, Any]] = []
    for _ in range(9):
        ratio = (low + high) / 2
        made = lessen.prune(found.net, found.example, method=Magnitude(ratio=ratio, across="layer"), units=found.structure, prove=False)
        left = macs(made.model, lambda m=made.model: m(found.example), ()).whole
        low, high = (ratio, high) if left > wanted else (low, ratio)
        tried.append((abs(left - wanted), left, made))
    _, left, made = min(tried, key=lambda entry: entry[0])
    return made.model, _sizes(made) | {"macs": round(left)}


def _sizes(made: Any) -> Row:
    widths = {name: len(indices) for name, indices in made.kept.items()}
    return {"macs": round(made.after.get("macs", 0)), "parameters": round(made.after["parameters"]), "widths": widths}


def goals(rows: list[Row]) -> list[Goal]:
    """SAMP-style against the best other ranking after the same training, means over the fresh seeds that all were measured with."""
    found = []
    for material in MATERIALS:
        for percent in sorted(REMOVED):
            means, seeds = compared(rows, material, percent), measured_with(rows, material, percent)
            counted = f"{len(seeds)} fresh seed{'' if len(seeds) == 1 else 's'}"
            for key, name in (("map", "search mAP"), ("ap", "detection AP")):
                others = [figures[key] for method, figures in means.items() if method != SAMP_STYLE]
                gain = means[SAMP_STYLE][key] - max(others) if others else None
                found.append(at_least(f"{material}, {percent} % of MACs, {counted}: {name} of SAMP-style minus the best other", gain, 0.0))
    return found


def measured_with(rows: list[Row], material: str, percent: int, needed: Sequence[str] = (*OTHERS, SAMP_STYLE)) -> list[int]:
    """The fresh seeds that every method was measured with."""
    these = [row for row in rows if (row["material"], row["removed"]) == (material, percent)]
    return [seed for seed in FRESH if {*needed} <= {row["method"] for row in these if row["seed"] == seed}]


def compared(rows: list[Row], material: str, percent: int, when: str = "after") -> dict[str, dict[str, float]]:
    """Every method's figures, means over these seeds, SAMP-style last; those at once only if they were measured with the same seeds."""
    seeds = measured_with(rows, material, percent)
    found: dict[str, dict[str, float]] = {}
    for method in (*OTHERS, *AT_ONCE, SAMP_STYLE) if seeds else ():
        if not {*seeds} <= {*measured_with(rows, material, percent, [method])}:
            continue
        these = [row for row in rows if (row["material"], row["removed"], row["method"]) == (material, percent, method)]
        figures = [row[when] for row in these if row["seed"] in seeds]
        found[method] = {key: statistics.fmean(each[key] for each in figures) for key in ("map", "top1", "ap")}
    return found
