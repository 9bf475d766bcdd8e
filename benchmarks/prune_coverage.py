"""Structured pruning of every architecture that can be built tiny: lessen and Torch-Pruning on the same models, judged alike.

Each model runs in a forked process. `lessen.prune` takes a quarter of every unit that it finds, the smallest by magnitude, and what
`lessen.save` wrote of the result is loaded and judged. Right means: traced, at least a tenth of the parameters gone, runs, equals the
masked model in float64 (norms over the channels that are left), tied weights tied, layers describe their tensors, saved and reloaded. A
clear error is no success, but it is no harm either: "silently wrong" is a smaller model that was handed out and is not right. Seconds
are of the processor; those of lessen hold the proof and the timing of both models, too.
"""

import copy
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Goal, Row, Session, at_least, at_most

RATIO = 0.25
KINDS = ("ffn", "channels", "kv_group", "heads", "width")
SECONDS = 20.0  # of the processor, per engine and model
SMOKE = ("cnn/resnet", "causal_lm/mistral")


def rows(session: Session) -> Iterator[Row | None]:
    """One row per model, families taken in turn, so that a run that is cut short has seen all of them."""
    import torch

    torch.set_num_threads(1)
    from benchmarks.zoo import hub
    from benchmarks.zoo.pool import forked

    hub.warm_up()
    built: dict[str, Row | None] = {}
    for engine in ("lessen", "torch_pruning"):
        for name, make in models().items():
            if (session.smoke and name not in SMOKE) or "unbuilt" in (built.get(name) or {}):
                continue
            about = {"engine": engine, "model": name, "family": name.split("/")[0]}
            row = session.row(f"{engine} {name}", lambda a=about, e=engine, n=name, m=make: a | forked(partial(_measure, e, n, m), 600))
            built.setdefault(name, row)
            yield row


def models() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """name -> (model, inputs), families in turn."""
    from benchmarks.zoo import cnn, hub

    listed: dict[str, list[tuple[str, Callable[[], tuple[Any, Any]]]]] = {"cnn": [(f"cnn/{n}", partial(_own, n)) for n in cnn.ZOO]}
    for name, (kind, class_name) in hub.names().items():
        listed.setdefault(name.split("/")[0], []).append((name, partial(_hub, name, kind, class_name)))
    longest = max(len(part) for part in listed.values())
    # Long families in proportion: place k of n stands at k / n of the way.
    order = sorted(
        (k / len(part), i, name, make) for i, part in enumerate(listed.values()) for k, (name, make) in enumerate(part) if longest
    )
    return {name: make for _, _, name, make in order}


def _own(name: str) -> tuple[Any, Any]:
    import torch

    from benchmarks.zoo import cnn, hub

    make, example = cnn.ZOO[name]
    torch.manual_seed(0)
    return hub.disturb(make().double().eval()), example()


def _hub(name: str, kind: str, class_name: str) -> tuple[Any, Any]:
    from benchmarks.zoo import hub, inputs

    failure: Exception | None = None
    for model in hub.builds(kind, class_name):
        for example in inputs.candidates(model, name.split("/")[0]):
            try:
                if hub.run(model, example):
                    return model, example
            except Exception as error:
                failure = failure or error
    raise failure or ValueError("no output")


def _measure(engine: str, name: str, make: Callable[[], tuple[Any, Any]]) -> Row:
    """One engine on one model; {"unbuilt": why} if the rules do not build it."""
    try:
        model, example = _limited(make)
    except Exception as error:
        return {"unbuilt": f"{type(error).__name__}: {error}"[:200]}
    row: Row = {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    cut = partial(_lessen, name, model, example) if engine == "lessen" else partial(_peer, model, example)
    return row | _verdict(cut, model, example)


def _verdict(cut: Callable[[], Any], model: Any, example: Any) -> Row:
    """Cut and judge: {"verdict": "right" | "wrong" | "error"}; wrong means that a model was handed out."""
    from benchmarks.zoo.judge import Wrong, judge

    start = time.process_time()
    try:
        smaller = _limited(cut)
    except Exception as error:
        return {"verdict": "error", "why": f"{type(error).__name__}: {error}"[:400], "cpu_seconds": round(time.process_time() - start, 2)}
    seconds = round(time.process_time() - start, 2)
    try:
        return {"verdict": "right", "cpu_seconds": seconds} | _limited(lambda: judge(model, smaller, example))
    except Wrong as error:
        return {"verdict": "wrong", "silent": error.silent, "why": str(error)[:400], "cpu_seconds": seconds}
    except Exception as error:
        return {"verdict": "wrong", "silent": False, "why": f"{type(error).__name__}: {error}"[:400], "cpu_seconds": seconds}


def _limited(work: Callable[[], Any]) -> Any:
    """What `work` returns, or TimeoutError after `SECONDS` of processor time."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS:g} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _lessen(name: str, model: Any, example: Any) -> Any:
    """What a user calls: prune, which traces, decides, cuts and proves; save; load. The reloaded model."""
    import torch

    import lessen
    from benchmarks.zoo.hub import run
    from lessen.methods import Magnitude

    made = lessen.prune(model, example, method=Magnitude(ratio=RATIO), kinds=KINDS, prove=True)
    family, _, short = name.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        made_by = f"benchmarks.prune_coverage:make_{short}" if family == "cnn" else None
        lessen.save(made, Path(folder) / "saved", made_by=made_by)
        reloaded: Any = lessen.load(Path(folder) / "saved")
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        reloaded.set_experts_implementation("eager")
    if any(not torch.equal(a, b) for a, b in zip(run(made.model, example), run(reloaded, example), strict=True)):
        raise AssertionError("the reloaded model gives other outputs")
    return reloaded


def __getattr__(name: str) -> Callable[[], Any]:
    """`make_NAME`: the factory of a network of our own, by which a saved one is made again."""
    if name.startswith("make_"):
        return lambda: _own(name.removeprefix("make_"))[0]
    raise AttributeError(name)


def _peer(model: Any, example: Any) -> Any:
    from benchmarks.peers import torch_pruning_peer

    return torch_pruning_peer.prune(copy.deepcopy(model), example)


def _share(name: str, right: Sequence[bool], wanted: float) -> Goal:
    counts = f" ({sum(right)} of {len(right)})" if right else ""
    return at_least(f"pruned rightly, {name}{counts}", 100 * sum(right) / len(right) if right else None, wanted, " %")


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What was promised, of the models that could be built."""
    tried = [row for row in rows if row["engine"] == "lessen"]
    own = [row for row in tried if "verdict" in row]
    families: dict[str, list[bool]] = {}
    for row in own:
        families.setdefault(row["family"], []).append(row["verdict"] == "right")
    whole = [right for part in families.values() for right in part]
    found = [_share("all models", whole, 97), *(_share(name, part, 90) for name, part in families.items())]
    unbuilt: dict[str, int] = {}
    for row in tried:
        unbuilt[row["family"]] = unbuilt.get(row["family"], 0) + ("unbuilt" in row)
    each = ", ".join(f"{name} {count}" for name, count in unbuilt.items() if count)
    value = f"{sum(unbuilt.values())} of {len(tried)}" + (f" ({each})" if each else "")
    name = "architectures that the generic rules do not build, not counted above"
    found.append(Goal(name, value if tried else "not measured", "for information", None))
    rightly = f"{sum(whole)} of {len(tried)}"
    found.append(
        Goal("pruned rightly, of all architectures, unbuilt ones too", rightly if tried else "not measured", "for information", None)
    )
    silent = sum(row["verdict"] == "wrong" and row["silent"] for row in own)
    found.append(at_most("silently wrong", float(silent) if own else None, 0))
    found += _compared(own, [row for row in rows if row["engine"] == "torch_pruning" and "verdict" in row])
    return found


def _compared(own: Sequence[Row], peers: Sequence[Row]) -> list[Goal]:
    """Both engines on the models that both have tried."""
    names = {row["model"] for row in peers}
    ours = [row for row in own if row["model"] in names]
    untied = sum("right, but" in row.get("why", "") for row in peers)
    more = {
        "right": (f", {untied} more but for ties that are lost", lambda row: row["verdict"] == "right"),
        "handed out a model that is not right": ("", lambda row: row["verdict"] == "wrong" and "right, but" not in row["why"]),
        "raised an error": ("", lambda row: row["verdict"] == "error" and not _late(row)),
        f"took more than {SECONDS:g} s of the processor": ("", _late),
    }
    found: list[Goal] = []
    for what, (added, is_so) in more.items():
        value = f"{sum(map(is_so, peers))} of {len(peers)}{added}; lessen {sum(map(is_so, ours))} of {len(ours)}"
        found.append(Goal(f"Torch-Pruning {what}", value if peers else "not measured", "for comparison", None))
    seconds = [f"{median(row['cpu_seconds'] for row in part):.2g}" for part in (peers, ours) if part]
    value = f"{seconds[0]}; lessen {seconds[-1]}, proof and timing included" if peers and ours else "not measured"
    found.append(Goal("Torch-Pruning: seconds of the processor, median model", value, "for comparison", None))
    return found


def _late(row: Row) -> bool:
    return row["verdict"] == "error" and row["why"].startswith("TimeoutError")


os.environ.setdefault("HF_HUB_OFFLINE", "1")
