"""SmolLM2-135M with 10, 20 and 30 % of ALL parameters removed (embeddings count, and stay), by lessen and by others, step by step.

Stages, each a row of its own: `pruned` (decided and cut, nothing repaired but what the method itself repairs), `compensated` (closed form,
`lessen.recover.stream`), `recovered` (10 minutes of processor time of training against the original, `lessen.recover`). Every model is
scored by one evaluator on near and far text, of which no method, training run or choice has seen anything; what is calibrated and trained
on is lessen's calibration text, half of it written by the dense model. Counts of parameters may differ by 1 % of the model.

"X type" is the published idea in lessen's engine. Torch-Pruning is the package; it is given the feed-forward channels alone, with attention
left whole. It has neither compensation nor recovery of its own, so it gets our recovery.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import assets, scoring
from benchmarks.harness import Goal, Row, Session, at_least, at_most
from benchmarks.material import Material, material
from lessen.calibration import Wish, settle
from lessen.core.edit import Edit, Keep, Replace, load_edits, save_edits
from lessen.core.record import Run
from lessen.evaluate.speed import Backend, Workload, measure
from lessen.export import export
from lessen.models import load, open_checkpoint
from lessen.models.checkpoint import Checkpoint
from lessen.models.edited import Edited
from lessen.models.module import InMemory
from lessen.recover.loop import recover
from lessen.recover.losses import Logits
from lessen.recover.modules import autocast
from lessen.recover.objective import Objective
from lessen.recover.options import Options
from lessen.recover.stream import compensate
from lessen.stats import data

RATIOS = (0.1, 0.2, 0.3)
STAGES = ("pruned", "compensated", "recovered")
OURS = "lessen"
TOKENS = 131072
MINUTES = 10.0
VARIANT = "shipped"
TORCH_PRUNING = ("Torch-Pruning magnitude", "Torch-Pruning Taylor")
TYPES = ("LLM-Pruner type", "FLAP type", "Wanda type")


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    session: Session
    found: Material
    folder: Path

    @property
    def source(self) -> Checkpoint:
        """The dense model."""
        return open_checkpoint(self.found.model(VARIANT))

    def text(self) -> tuple[Tensor, Tensor]:
        """(windows to calibrate and train on, held-out windows), of which the dense model wrote half."""
        if self.session.smoke:
            windows = self.found.windows("calibration", "heldout")
            return windows["calibration"], windows["heldout"]
        self.folder.mkdir(parents=True, exist_ok=True)
        text, _ = settle(self.source, Wish("builtin", TOKENS, 0, 0.5), self.folder)
        held = torch.cat([text.heldout[:4], text.heldout[-4:]])  # from either half
        evaluated = self.found.windows("near", "far")
        data.check_disjoint(torch.cat([text.calibration, text.heldout]), evaluated)
        return text.calibration, held

    def calibration(self) -> Tensor:
        """The windows that methods look at: 32, from either half."""
        windows, _ = self.text()
        half = min(16, len(windows) // 2)
        return torch.cat([windows[:half], windows[-half:]])

    def place(self, ratio: float, name: str, stage: str) -> Path:
        """Where a model lies."""
        return self.folder / f"{ratio:.0%} {name} {stage}".replace(" ", "-").replace("%", "")


def rows(session: Session) -> Iterator[Row | None]:
    found = material(session.smoke)
    setting = Setting(session, found, assets.cache() / f"prune_llm{'-smoke' if session.smoke else ''}")
    if session.smoke and not session.kept:
        shutil.rmtree(setting.folder, ignore_errors=True)
    yield session.row("dense", lambda: _measured(setting, found.model(VARIANT)) | {"method": "dense", "ratio": 0.0, "stage": "dense"})
    for ratio in RATIOS[1:2] if session.smoke else RATIOS:
        for name in (OURS, TYPES[1]) if session.smoke else (OURS, *TYPES, *TORCH_PRUNING):
            for stage in STAGES:
                if stage == "compensated" and name in TORCH_PRUNING:
                    continue
                head = {"method": name, "ratio": ratio, "stage": stage}
                yield session.row(f"{ratio:.0%} {name} {stage}", lambda h=head: h | _stage(setting, **h))


def _stage(setting: Setting, ratio: float, method: str, stage: str) -> Row:
    """Make a model, if an interrupted run has not left it, and measure it."""
    torch.set_num_threads(setting.session.threads)
    told = _made(setting, ratio, method, stage)
    return told | _measured(setting, setting.place(ratio, method, stage))


def _made(setting: Setting, ratio: float, method: str, stage: str) -> Row:
    """Make a model and those it is made from, unless they are there; what is to be told of the making."""
    place = setting.place(ratio, method, stage)
    if (place / "told.json").exists():
        return json.loads((place / "told.json").read_text())
    before = {"pruned": None, "compensated": "pruned", "recovered": "pruned" if method in TORCH_PRUNING else "compensated"}[stage]
    if before is not None:
        _made(setting, ratio, method, before)
    shutil.rmtree(place, ignore_errors=True)
    told = {"pruned": _prune, "compensated": _compensate, "recovered": _recover}[stage](setting, ratio, method, place)
    (place / "told.json").write_text(json.dumps(told))
    return told


def _measured(setting: Setting, place: Path) -> Row:
    """Parameters, quality and speed of a directory."""
    checkpoint = open_checkpoint(place)
    whole, left = (sum(prod(c.shape(n)) for n in c.names) for c in (setting.source, checkpoint))
    figures: Row = {}
    if not setting.session.smoke:  # a process that loads torch to time a model of no size
        speed = measure([Backend("torch", str(place))], Workload(256, 32, threads=setting.session.threads), repeats=3)[0]
        figures = {key: speed[key] for key in ("prefill_tps", "decode_tps") if key in speed}
    return {"parameters": left, "removed": round(1 - left / whole, 5), **scoring.score(checkpoint, VARIANT, setting.found), **figures}


def _save(checkpoint: Checkpoint, place: Path) -> None:
    """Write a model; beside its lessen.json, layers may have different widths."""
    aside = place.with_name(f"{place.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    export(checkpoint, aside, "huggingface")
    Run(source={"label": checkpoint.label}).save(aside / "lessen.json")
    aside.rename(place)


def _units(source: Checkpoint) -> list[Any]:
    from lessen.structure.decoder import units

    return [unit for unit in units(source) if unit.kind in ("ffn", "kv_group")]


def _prune(setting: Setting, ratio: float, name: str, place: Path) -> Row:
    if name in TORCH_PRUNING:
        _save(InMemory(_torch_pruning(setting, ratio, name)), place)
        return {}
    chosen = {
        "LLM-Pruner type": lambda: _decide(setting, ratio, "LLM-Pruner type"),
        "FLAP type": lambda: _decide(setting, ratio, "FLAP type"),
        "Wanda type": lambda: _decide(setting, ratio, "Wanda type"),
        OURS: lambda: _ours(setting, ratio),
    }[name]()
    edits, told = chosen
    setting.folder.mkdir(parents=True, exist_ok=True)
    save_edits(_edits(setting, ratio, name), edits)
    _save(Edited(setting.source, edits), place)
    return told


def _edits(setting: Setting, ratio: float, name: str) -> Path:
    return setting.folder / f"{setting.place(ratio, name, 'edits').name}.safetensors"


def _decide(setting: Setting, ratio: float, how: str) -> tuple[list[Edit], Row]:
    """The decision of one method at this ratio of all parameters."""
    import lessen
    from lessen.methods import FLAP, Fisher, Magnitude, Taylor, Wanda

    units = _units(setting.source)
    blocks = 1 + max(unit.block for unit in units)
    if how == "LLM-Pruner type":  # its default leaves the first four and the last two blocks alone
        units = [unit for unit in units if blocks < 8 or 4 <= unit.block < blocks - 2]
    method = {
        "LLM-Pruner type": Taylor(across="layer"),
        "FLAP type": FLAP(unit="all", across="model", of="parameters", normalise="zscore", partition="unit"),
        "Wanda type": Wanda(unit="ffn", across="layer", of="parameters"),
        "Magnitude": Magnitude(unit="all", across="model", of="parameters", per="parameter"),
        "Taylor": Taylor(),
        "Taylor switch": Taylor(at="switch"),
        "Fisher": Fisher(),
    }[how]
    model = load(setting.found.model(VARIANT))
    windows = setting.calibration()
    with autocast(None, torch.device("cpu")):
        found = lessen.prune(
            model,
            {"input_ids": windows[:1, :32]},
            list(windows.split(1)),
            method=method,
            to=f"{100 * ratio:g}%",
            units=units,
            prove=False,
        )
    return list(found.edits), {"notes": list(found.notes)}


def _ours(setting: Setting, ratio: float) -> tuple[list[Edit], Row]:
    """The candidate whose held-out KL after compensation is lowest: no score is best on every model."""
    tried: dict[str, float] = {}
    best: list[Edit] = []
    for how in ("Taylor", "Taylor switch", "FLAP type"):
        edits: list[Edit] = [edit for edit in _decide(setting, ratio, how)[0] if not isinstance(edit, Replace)]
        more = compensate(setting.source, edits, setting.calibration())
        tried[how] = _heldout(setting, Edited(setting.source, [*edits, *more]))
        if tried[how] == min(tried.values()):
            best = edits
    return best, {"candidates": {how: round(value, 5) for how, value in tried.items()}}


def _heldout(setting: Setting, checkpoint: Checkpoint) -> float:
    """KL to the dense model on the held-out windows."""
    student, teacher = load_checkpoint(checkpoint), load(setting.found.model(VARIANT))
    objective, total, count = Objective((Logits(),), teacher), 0.0, 0.0
    with torch.no_grad(), autocast(None, torch.device("cpu")):
        for window in setting.text()[1].split(1):
            total += float(objective.sums(student, window)["logits"][0])
            count += float(objective.counts(window)[0])
    return total / count


def load_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """A checkpoint as a module in float32."""
    from lessen.models.skeleton import fill

    return fill(checkpoint.skeleton(), checkpoint, torch.float32)


def _compensate(setting: Setting, ratio: float, name: str, place: Path) -> Row:
    edits = load_edits(_edits(setting, ratio, name))
    # What the method put into biases is fitted anew together with everything else.
    cuts = [edit for edit in edits if isinstance(edit, Keep)]
    more = compensate(setting.source, cuts, setting.calibration())
    _save(Edited(setting.source, [*cuts, *more]), place)
    return {}


def _recover(setting: Setting, ratio: float, name: str, place: Path) -> Row:
    before = setting.place(ratio, name, "pruned" if name in TORCH_PRUNING else "compensated")
    small = open_checkpoint(before)
    student, teacher = load(before), load(setting.found.model(VARIANT))
    train, heldout = setting.text()
    options = training(setting.session.smoke)
    found = recover(student, teacher, train, heldout, options)
    state = found.model.state_dict()
    _save(Edited(small, [Replace(name, state[name]) for name in small.names]), place)
    told = {"steps": found.steps, "train_seconds": round(found.seconds, 1), "train_tokens": found.steps * options.batch * train.shape[1]}
    return told | {
        "heldout_before": found.before,
        "heldout_after": found.best,
        "stopped": found.stopped,
        "threads": torch.get_num_threads(),
    }


def training(smoke: bool) -> Options:
    """How every pruned model, ours or a peer's, is trained."""
    options = Options(batch=4, learning_rate=3e-4, warmup=0.1, evaluate_every=25, patience=None, minutes=MINUTES, clock="processor")
    return replace(options, steps=4, minutes=None) if smoke else options


def _torch_pruning(setting: Setting, ratio: float, name: str) -> nn.Module:
    """The package's MetaPruner on the feed-forward layers, the same fraction of every one."""
    import sys

    from benchmarks.peers import torch_pruning_peer

    if str(torch_pruning_peer.folder()) not in sys.path:
        sys.path.append(str(torch_pruning_peer.folder()))
    import torch_pruning  # pyright: ignore[reportMissingImports]

    model = load(setting.found.model(VARIANT)).requires_grad_(True)
    whole = sum(p.numel() for p in model.parameters())
    gates = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(("gate_proj", "up_proj"))]
    others = [m for m in model.modules() if isinstance(m, nn.Linear) and not any(m is g for g in gates)]
    share = ratio * whole / (3 * sum(m.weight.numel() for m in gates) / 2)
    importance = torch_pruning.importance
    taylor = name.endswith("Taylor")
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        {"input_ids": setting.calibration()[:1, :32], "use_cache": False},
        importance=importance.GroupTaylorImportance() if taylor else importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=share,
        ignored_layers=others,
        forward_fn=lambda model, inputs: model(**inputs),
        output_transform=lambda out: out.logits,
    )
    if taylor:
        windows = setting.calibration()
        for window in windows.split(1):
            with autocast(None, torch.device("cpu")):
                loss = model(input_ids=window, labels=window, use_cache=False).loss / len(windows)
            loss.backward()
    pruner.step()
    widths = {m.out_features for m in gates}
    if len(widths) == 1:
        model.config.intermediate_size = widths.pop()  # pyright: ignore
    return copy.deepcopy(model.requires_grad_(False)).eval()


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Best of all at each ratio and stage; 20 % recovered within 1.25x of the dense perplexity."""
    found = {row["key"]: row for row in rows}
    made: list[Goal] = []
    for ratio in RATIOS:
        for stage in STAGES:
            ours = found.get(f"{ratio:.0%} {OURS} {stage}", {})
            others = [found.get(f"{ratio:.0%} {name} {stage}", {}) for name in (*TYPES, *TORCH_PRUNING)]
            for text in ("near", "far"):
                have = ours.get(f"{text}_ppl")
                rivals = [row[f"{text}_ppl"] for row in others if f"{text}_ppl" in row]
                factor = min(rivals) / have if rivals and have else None
                title = f"{ratio:.0%} {stage}, {text}: perplexity of the best other ({len(rivals)} measured) over ours"
                made.append(at_least(title, factor, 1.0, "x"))
    dense, ours = found.get("dense", {}), found.get(f"20% {OURS} recovered", {})
    for text in ("near", "far"):
        have, want = ours.get(f"{text}_ppl"), dense.get(f"{text}_ppl")
        made.append(at_most(f"20% recovered, {text}: perplexity over the dense one", have / want if have and want else None, 1.25, "x"))
    off = [abs(row["removed"] - row["ratio"]) for row in rows if row.get("ratio")]
    made.append(at_most("largest deviation from the ratio asked for, of the model", 100 * max(off) if off else None, 1, " %"))
    return made
