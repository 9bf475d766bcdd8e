"""Pruning a person-search network to 70, 50 and 30 % of its multiply-accumulates: SAMP-style against four other rankings.

The network (`lessen.models.person_search`) is trained here from a seed, on two materials: rendered scenes, whose boxes and identities are
exact, with three seeds; and a real surveillance video whose boxes and identities are pseudo labels, with one. Neither is comparable with
figures on CUHK-SYSU or PRW, which cannot be had here; the readers and the protocol are those of these sets.

Every method gets the same network, the same budget, the same samples to look at, and the same training afterwards; the ranking is all that
differs, and for SAMP-style the loss of the training: AdaptiveOIM instead of OIM. Its formulae are ours, the paper's are not public. Scores
from gradients are divided by the multiply-accumulates that leave with a channel. Every layer keeps a tenth of its channels, with SAMP-style
half the share that uniform pruning would leave (the first run, on the scenes of seed 0, had a tenth there too: one block of the last stage
was all but emptied; the variants below keep that row).

    uniform         every layer loses the same share; within a layer the smallest weights go
    magnitude       one ranking of all channels by their weights, divided by the layer's mean
    Taylor          |switch gradient| of the sum of both losses
    Group-Fisher    squared switch gradient of the sum of both losses
    SAMP-style      squared switch gradient of each loss by itself, normalised, merged, with a floor that falls in stages

Figures of every row: AP and recall of detection, mAP and top-1 of search, before and after the training. Before means: nothing trained,
but the batch norms' statistics taken again, without labels, from the samples that were looked at; with the old ones every method scores 0.
"""

import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
REMOVED = (30, 50, 70)
SAMP_STYLE = "SAMP-style"
OTHERS = ("uniform", "magnitude", "Taylor", "Group-Fisher")
# What SAMP-style is made of, each changed by itself, at 50 % on the scenes of seed 0.
VARIANTS: dict[str, dict[str, Any]] = {
    "merge sum": {"merge": "sum"},
    "merge harmonic": {"merge": "harmonic"},
    "merge rank": {"merge": "rank"},
    "floor of a tenth": {"least": 0.1},
    "no falling floor": {"least": 0.1, "stages": 1},
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
    """Material by material, seed by seed."""
    smoke = session.smoke
    seeds = (0,) if smoke else (0, 1, 2)
    sizes = scenes.Sizes(6, 8, 4, 6) if smoke else scenes.Sizes()
    plan = Plan(2, 1, 4, 2) if smoke else Plan(450, 60, 8)
    for seed in seeds:
        yield from _rows(session, "scenes", seed, plan, lambda s=seed: scenes.dataset(s, sizes))
    if not smoke:
        yield from _rows(session, "video", 0, Plan(200, 60, 6), video.dataset)


def _rows(session: Session, material: str, seed: int, plan: Plan, make: Callable[[], PersonSearch]) -> Iterator[Row | None]:
    made: list[Trained] = []

    def full() -> Trained:
        if not made:
            made.append(trained(make(), plan, seed, material, session.smoke))
        return made[0]

    name = f"{material} seed {seed}"
    yield session.row(f"{name} full", lambda: _full(full()) | {"material": material, "seed": seed})
    for percent in REMOVED[1:2] if session.smoke else REMOVED:
        for method in (*OTHERS, SAMP_STYLE):
            head = {"material": material, "seed": seed, "removed": percent, "method": method}
            yield session.row(f"{name} {percent}% {method}", lambda h=head: h | _pruned(full(), h["method"], h["removed"]))
    if material == "scenes" and seed == 0:
        for variant in VARIANTS:
            head = {"material": material, "seed": seed, "removed": 50, "method": f"{SAMP_STYLE}, {variant}"}
            yield session.row(f"{name} 50% {SAMP_STYLE}, {variant}", lambda h=head, v=variant: h | _pruned(full(), SAMP_STYLE, 50, v))


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


def _pruned(found: Trained, method: str, percent: int, variant: str | None = None) -> Row:
    """Prune, score, train, score."""
    started = time.process_time()
    if found.structure is None:
        found.structure = lessen.trace(found.net, found.example)
    adaptive = method == SAMP_STYLE and variant != "plain OIM"
    smaller, sizes = _smaller(found, method, percent, VARIANTS[variant] if variant else {})
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


def _smaller(found: Trained, method: str, percent: int, options: dict[str, Any]) -> tuple[nn.Module, Row]:
    """The network without `percent` % of its multiply-accumulates."""
    if method == "uniform":
        return _uniform(found, percent)
    oim = AdaptiveOIM(found.oim) if method == SAMP_STYLE else found.oim
    tasks = training.Tasks(oim, learn=False)
    batches = _batches(found, 1)
    ask: Any = tasks.objective if method == SAMP_STYLE else lambda model, batch: tasks.total(training.run(model, batch), batch)
    chosen: dict[str, Any] = {
        "magnitude": Magnitude(across="model", normalise="mean", partition="unit"),
        "Taylor": Taylor(at="switch", per="cost"),
        "Group-Fisher": Fisher(per="cost"),
        SAMP_STYLE: SAMP(per="cost", least=0.5 * (1 - percent / 100) ** 0.5),
    }
    to = f"{percent}% macs"
    made = lessen.prune(
        found.net,
        found.example,
        batches,
        method=replace(chosen[method], **options),
        to=to,
        losses=ask,
        units=found.structure,
        prove=False,
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
    """SAMP-style against the best other ranking after the same training, means over the seeds that every method was measured with."""
    found = []
    for percent in REMOVED:
        these = [row for row in rows if (row["material"], row["removed"]) == ("scenes", percent)]
        seeds = [
            seed for seed in {row["seed"] for row in these} if {*OTHERS, SAMP_STYLE} <= {r["method"] for r in these if r["seed"] == seed}
        ]
        counted = f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
        for key, name in (("map", "search mAP"), ("ap", "detection AP")):
            means = {method: _mean(these, method, seeds, key) for method in (*OTHERS, SAMP_STYLE)} if seeds else {}
            gain = means.pop(SAMP_STYLE) - max(means.values()) if means else None
            found.append(at_least(f"scenes, {percent} % of MACs, {counted}: {name} of SAMP-style minus the best other", gain, 0.0))
    return found


def _mean(rows: list[Row], method: str, seeds: Sequence[int], key: str) -> float:
    return statistics.fmean(row["after"][key] for row in rows if row["method"] == method and row["seed"] in seeds)
