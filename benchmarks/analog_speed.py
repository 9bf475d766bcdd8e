"""How long analog layers and networks take to simulate, against digital ones and other toolkits, on one thread.

A layer of 512 x 512 with a batch of 256: 8-bit DAC and ADC, weights disturbed by 3 % (a programmed chip), on one tile and on sixteen of
128 x 128; the same with noise drawn anew for every read. Every toolkit lies in an environment of its own and answers from a process that
stays; one repetition of every case is asked for in turn, so that all of them see the same neighbours. Figures are medians of processor
time. `aihwkit` is timed twice: with what it does besides by default (noise and range management), and with that switched off.

Whole networks: EfficientNet-Lite0 on 8 pictures and SmolLM2-135M on 256 tokens, every linear layer and convolution on tiles of 512 x 512,
taking turns with the digital forward. Memory: processes that map SmolLM2, program it at two times and score text; the median of five.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.harness import Goal, Row, Session, at_least, at_most, worker
from lessen.analog.chip import Array, Chip
from lessen.analog.devices.gaussian import Gaussian
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.errors import LessenError

BASE = Chip(device=Gaussian(written=0.03), dac=Dac(8), adc=Adc(8), reads="quiet")
SIXTEEN = replace(BASE, array=Array(128, 256))  # 128 weight columns of two devices
NOISY = replace(BASE, device=Gaussian(written=0.03, reading=0.03), reads="fresh")
OURS = {"one tile": BASE, "tiles of 128": SIXTEEN, "read noise": NOISY, "read noise, tiles of 128": replace(NOISY, array=SIXTEEN.array)}
TOOLKITS = ("lightning", "aihwkit")
WARM = 5


def rows(session: Session) -> Iterator[Row | None]:
    torch.set_num_threads(1)
    yield session.row("layer", lambda: _layer(session))
    if not session.smoke:
        yield session.row("EfficientNet-Lite0", lambda: _network(_lite0))
        yield session.row("SmolLM2", lambda: _network(_smollm))
    yield session.row("memory", lambda: _memory(session))


def _layer(session: Session) -> Row:
    """Medians of all cases, in milliseconds and over `nn.Linear` of the same torch."""
    size, batch, times = (32, 8, 3) if session.smoke else (512, 256, 400)
    torch.manual_seed(0)
    linear, x = nn.Linear(size, size), torch.randn(batch, size)
    own: dict[str, Callable[[], Any]] = {"nn.Linear": lambda: linear(x)}
    for name, chip in OURS.items():
        model = map(nn.Sequential(linear), chip, calibration=[x]).program(seed=0).model
        own[name] = lambda model=model: model(x)
    others, missing = ({}, {}) if session.smoke else _others(size, batch)
    taken: dict[str, list[float]] = {}
    try:
        with torch.no_grad():
            for turn in range(times + WARM):
                found = {f"lessen: {name}": _seconds(run) for name, run in own.items()}
                for toolkit, process in others.items():
                    found |= {f"{toolkit}: {case}": process.ask(case) for case in process.cases}
                for name, seconds in found.items() if turn >= WARM else ():
                    taken.setdefault(name, []).append(1e3 * seconds)
    finally:
        for process in others.values():
            process.stop()
    middle = {name: median(values) for name, values in taken.items()}
    unit = middle["lessen: nn.Linear"]
    return {
        "size": size,
        "batch": batch,
        "repetitions": times,
        "median_ms": {name: round(value, 3) for name, value in middle.items()},
        "over_linear": {name: round(value / unit, 3) for name, value in middle.items()},
        "not_installed": missing,
    }


class _Other:
    """A toolkit's process."""

    def __init__(self, toolkit: str, size: int, batch: int):
        command = [str(peers.python(toolkit)), str(peers.script("analog_layers")), toolkit, str(size), str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.cases: list[str] = self._answer()["ready"]

    def ask(self, case: str) -> float:
        assert self.process.stdin is not None
        print(case, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue  # a toolkit that prints when it is imported
        raise LessenError("analog_layers", got=f"exit code {self.process.wait()}", wanted="a time")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _others(size: int, batch: int) -> tuple[dict[str, _Other], dict[str, str]]:
    found, missing = {}, {}
    for toolkit in TOOLKITS:
        try:
            found[toolkit] = _Other(toolkit, size, batch)
        except LessenError as error:
            missing[toolkit] = str(error)
    return found, missing


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _network(make: Callable[[], tuple[nn.Module, Any]]) -> Row:
    model, inputs = make()
    mapped = map(model, BASE, calibration=[inputs], store=None).program(seed=0)
    taken: dict[str, list[float]] = {"digital": [], "analog": []}
    with torch.no_grad():
        for _ in range(7):
            for name, net in (("digital", model), ("analog", mapped.model)):
                taken[name].append(_seconds(lambda net=net: net(inputs)))
    middle = {f"{name}_seconds": round(median(values[1:]), 4) for name, values in taken.items()}
    analog, whole = mapped.weights
    ratio = {"over_digital": round(middle["analog_seconds"] / middle["digital_seconds"], 3)}
    return middle | ratio | {"tiles": mapped.physical_tiles, "weights_on_tiles": round(analog / whole, 4)}


def _lite0() -> tuple[nn.Module, Any]:
    from benchmarks.lite0 import classifier, pictures

    return classifier(), pictures(8, odd=True)


def _smollm() -> tuple[nn.Module, Any]:
    from benchmarks.material import material
    from lessen.models import load

    found = material()
    return load(found.model("shipped")).eval(), found.windows("near")["near"][:1, :256]


def _memory(session: Session) -> Row:
    """Peaks of processes that map and score, beside one that only loads; what an allocator gives back differs from run to run."""

    def peak(mapped: bool) -> dict[str, Any]:
        return worker("analog_memory", {"smoke": session.smoke, "map": mapped}, inline=session.smoke)["answer"]

    loaded, runs = peak(False), [peak(True) for _ in range(1 if session.smoke else 5)]
    over = [round((run["peak_mb"] - run["imports_mb"]) / run["float32_mb"], 3) for run in runs]
    middle = runs[over.index(sorted(over)[len(over) // 2])]
    return {"loaded_peak_mb": loaded["peak_mb"], "mapped_peak_mb": middle["peak_mb"], **middle, "runs": over, "over_float32": median(over)}


def goals(rows: list[Row]) -> list[Goal]:
    """The figures that were promised."""
    found = {row["key"]: row for row in rows}
    over: dict[str, float] = found.get("layer", {}).get("over_linear", {})
    ours, theirs = over.get("lessen: tiles of 128"), over.get("aihwkit: tiles of 128 defaults")
    alike = over.get("aihwkit: tiles of 128 as lessen")
    return [
        at_most("8-bit DAC and ADC, 3 % noise, one tile: over nn.Linear", over.get("lessen: one tile"), 1.5, "x"),
        at_most("the same on sixteen tiles of 128 x 128", ours, 2.0, "x"),
        at_most("noise drawn for every read: over nn.Linear", over.get("lessen: read noise"), 3.0, "x"),
        at_least("aihwkit's sixteen tiles as it comes, over ours", theirs / ours if theirs and ours else None, 4.0, "x"),
        at_least(
            "aihwkit's sixteen tiles without its own noise and range management, over ours",
            alike / ours if alike and ours else None,
            4.0,
            "x",
        ),
        at_most(
            "SmolLM2 mapped and evaluated: peak memory above imports, over its float32 weights, median of five",
            found.get("memory", {}).get("over_float32"),
            2.0,
            "x",
        ),
    ]
