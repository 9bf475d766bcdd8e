"""What every benchmark shares: rows that survive a kill, processes measured from outside, the environment, goals.

A benchmark is a module with two functions: `rows(session)` measures, row by row, through `session.row(key, compute)`; `goals(rows)` is
a pure function of the rows. Finished rows lie in a side file, one JSON object a line, headed by what they depend on (benchmark, size,
versions); a second run of the same command takes them from there.
"""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PACKAGES = ("lessen", "torch", "numpy", "transformers", "gguf", "xllamacpp", "onnxruntime", "onnxruntime-genai", "compressed-tensors")
ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = Path(__file__).resolve().with_name("launcher.py")


TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(SystemExit):
    """This run, or a process that it measures, was told to end: no figure, no row, no result. What is finished lies in the side file."""


def stop_when_told() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: what it has started ends with it, and nothing is written."""

    def stop(number: int, _: object) -> None:
        raise Stopped(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


@dataclass(frozen=True)
class Goal:
    """One figure that was promised. met is None where the figure could not be measured here; `value` then says why."""

    name: str
    value: float | str
    target: str
    met: bool | None


def at_least(name: str, value: float | None, target: float, unit: str = "") -> Goal:
    """A goal met by values of `target` or more; a value of None is one that was not measured."""
    wanted = f">= {target}{unit}"
    return Goal(name, "not measured", wanted, None) if value is None else Goal(name, float(f"{value:.4g}"), wanted, value >= target)


def at_most(name: str, value: float | None, target: float, unit: str = "") -> Goal:
    """A goal met by values of `target` or less."""
    wanted = f"<= {target}{unit}"
    return Goal(name, "not measured", wanted, None) if value is None else Goal(name, float(f"{value:.4g}"), wanted, value <= target)


def command(name: str, smoke: bool) -> str:
    """By which a benchmark is run."""
    return " ".join(["python -m benchmarks", name, *(["--smoke"] if smoke else [])])


@dataclass
class Session:
    """One run of a benchmark: its size, where it may write, and the rows that are already there.

    Attributes:
        name: of the benchmark.
        smoke: seconds instead of hours, on a random model of a few thousand weights.
        side: file of finished rows; None keeps nothing.
        only: take up only rows whose key contains this text; the others are left out of the result.
        again: forget finished rows whose key contains this text ("" forgets all), and keep the others: of the side file, or where there
            is none of the result that lies beside it.
        threads: for every runtime that is measured.
    """

    name: str
    smoke: bool = False
    side: Path | None = None
    only: str | None = None
    again: str | None = None
    threads: int = 1
    kept: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self):
        head = {"benchmark": self.name, "smoke": self.smoke, "threads": self.threads}
        if self.side is None:
            return
        whole = self.side.with_name(f"{self.side.name.removesuffix('.rows.jsonl')}.json")
        if self.again and not self.side.exists() and whole.exists():
            data = json.loads(whole.read_text())
            if data["command"] == command(self.name, self.smoke) and data["env"]["threads"] == self.threads:
                self.kept = {row["key"]: row for row in data["rows"] if self.again not in row["key"]}
        if self.side.exists():
            lines = [json.loads(line) for line in self.side.read_text().splitlines() if line.endswith("}")]
            if lines and lines[0] == head:
                rows = {line["key"]: line["row"] for line in lines[1:]}
                self.kept = {key: row for key, row in rows.items() if self.again is None or self.again not in key}
        self.side.parent.mkdir(parents=True, exist_ok=True)
        lines = [head, *({"key": key, "row": row} for key, row in self.kept.items())]
        self.side.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def row(self, key: str, compute: Callable[[], Row]) -> Row | None:
        """The row `key`: from the side file if it is there, else computed and appended to it at once. None if `only` leaves it out."""
        if self.only is not None and self.only not in key:
            return self.kept.get(key)
        if key not in self.kept:
            start = time.perf_counter()
            print(f"{self.name}: {key} ...", file=sys.stderr, flush=True)
            row = compute()
            self.kept[key] = {"key": key, **row, "wall_seconds": round(time.perf_counter() - start, 1)}
            if self.side is not None and "skipped" not in row:  # what could not be measured is tried again next time
                with self.side.open("a") as file:
                    file.write(json.dumps({"key": key, "row": self.kept[key]}) + "\n")
            print(f"{self.name}: {key}: {self.kept[key]['wall_seconds']} s", file=sys.stderr, flush=True)
        return self.kept[key]


def measured(command: Sequence[str], *, threads: int = 1, timeout: float | None = None) -> Row:
    """Run a command and say what it cost: cpu_seconds (user and system), peak_mb (resident), seconds (wall), exit code, end of stderr.

    Raises:
        Stopped: somebody told it to end, so what it cost says nothing.
    """
    limits = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | limits | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("stdout", "stderr", "cost")}
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(paths["cost"]), str(timeout or "")]
        with (
            paths["stdout"].open("w") as output,
            paths["stderr"].open("w") as errors,
            subprocess.Popen([*launcher, *command], stdout=output, stderr=errors, cwd=ROOT, env=environment) as process,
        ):
            try:
                code = process.wait()
            finally:
                process.terminate()  # the launcher ends what it has started
        cost = json.loads(paths["cost"].read_text()) if code == 0 else {"code": code}
        if -cost["code"] in TOLD_TO_END or code:
            raise Stopped(128 - cost["code"] if cost["code"] < 0 else cost["code"])
        return cost | {"stdout": paths["stdout"].read_text(), "stderr": paths["stderr"].read_text()[-4000:]}


def worker(task: str, arguments: Row, *, inline: bool = False, **options: Any) -> Row:
    """Run `benchmarks.worker TASK` in its own process; returns its JSON answer beside what it cost.

    Args:
        task: one of `benchmarks.worker.TASKS`.
        arguments: what it takes.
        inline: run it in this process instead, which spares smoke runs the imports; its cost is then this process's.
        options: of `measured`.
    """
    if inline:
        from benchmarks.worker import TASKS

        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        answer = TASKS[task](arguments)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds = time.perf_counter() - start
        return {"answer": answer, "cpu_seconds": round(cpu, 2), "peak_mb": round(after.ru_maxrss / 1024, 1), "seconds": round(seconds, 2)}
    cost = measured([sys.executable, "-m", "benchmarks.worker", task, json.dumps(arguments)], **options)
    if cost["code"]:
        raise RuntimeError(f"benchmarks.worker {task}: exit code {cost['code']}\n{cost['stderr']}")
    answer = json.loads(cost["stdout"].splitlines()[-1])
    return {"answer": answer} | {k: cost[k] for k in ("cpu_seconds", "peak_mb", "seconds")}


def environment(threads: int) -> Row:
    """Versions, processor and threads: what a figure depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": name,
        "cores": os.cpu_count(),
        "instructions": [f for f in ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if f in flags],
        "threads": threads,
        "versions": found,
        "load_before": round(os.getloadavg()[0], 2),
    }


def result(command: str, env: Row, rows: Sequence[Row], goals: Sequence[Goal]) -> Row:
    """The one JSON object that a benchmark writes; its seconds are those of the rows, whichever run measured them."""
    seconds = sum(row["wall_seconds"] for row in rows)
    return {"command": command, "env": env, "seconds": round(seconds, 1), "rows": list(rows), "goals": [asdict(goal) for goal in goals]}


def write(path: Path, data: Row) -> None:
    """Write JSON aside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    aside.replace(path)
