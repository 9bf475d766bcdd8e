"""Tokens per second of the same model in several runtimes, measured so that the figures can be set side by side.

Prefill is from the prompt to the first new token, decode is every further token, both in tokens per second over the whole batch. What makes
such figures honest:

- every backend runs in a process of its own, with its own thread pool, and is stopped (SIGSTOP) while another is timed: the pools of
  torch, ONNX Runtime and llama.cpp spin while they wait, and would take the processor from whoever is measured;
- runs are interleaved (A B C A B C), so that a machine that warms up or gets busy is unjust to nobody;
- the first runs of each are thrown away, the median is reported with the lowest and the highest;
- threads are set, equal for all, and stated, with the load of the machine. By default one processor is left free: decode with as many
  spinning threads as processors falls to a tenth as soon as anything else runs, because every matrix product waits for the thread that
  was put aside. `OMP_WAIT_POLICY` is removed from the environment for the same reason.

A backend that cannot run is a row with a reason.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, Any

from lessen.core.event import Event, Listener
from lessen.errors import UsageError, nearest
from lessen.models.checkpoint import Checkpoint

RUNTIMES = ("torch", "onnxruntime-genai", "llama.cpp")


@dataclass(frozen=True)
class Backend:
    """One thing to time.

    Attributes:
        runtime: "torch" (float32), "onnxruntime-genai" or "llama.cpp".
        path: what `lessen.load` takes, a folder with model.onnx and genai_config.json, or a .gguf file.
        model: what to call it in the table ("source", "result", the format of an export).
    """

    runtime: str
    path: str
    model: str = "result"


@dataclass(frozen=True)
class Workload:
    """What every backend has to do.

    Attributes:
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate; the first one belongs to prefill.
        batch: sequences at once.
        threads: of computation; None is one less than the processors this process may use, at least 1.
        vocab: prompts are made of token ids below this. Speed does not depend on which.
    """

    prompt_tokens: int = 256
    new_tokens: int = 64
    batch: int = 1
    threads: int | None = None
    vocab: int = 256


def measure(
    backends: Sequence[Backend],
    workload: Workload | None = None,
    *,
    threads: int | None = None,
    repeats: int = 5,
    warmup: int = 1,
    timeout_s: float = 600.0,
    budget_s: float = 60.0,
    on_event: Listener | None = None,
) -> list[dict[str, Any]]:
    """Time every backend on one workload, taking turns.

    Args:
        backends: what to time.
        workload: prompt, new tokens, batch, threads.
        threads: shorthand for the threads of the workload.
        repeats: timed runs of each.
        warmup: runs of each that are not counted.
        budget_s: a backend whose runs have taken longer than this is not repeated again; the row says how many counted.
        timeout_s: longest that loading or one run may take; a backend that takes longer is reported as such.
        on_event: hears of every run.

    Returns:
        One row for each backend, in order: `runtime`, `model`, `path`, `batch`, `threads`, `prompt_tokens`, `new_tokens`,
        `machine_load` (mean number of other processes that wanted a processor when it began; None where the system does not say), and
        either `prefill_tps`, `decode_tps` (medians), `prefill_range`, `decode_range` (lowest and highest), `repeats`, `version`, `load_s`
        (seconds to load) and `peak_mb` (largest resident memory of its process), or a `reason`.

    Raises:
        UsageError: an unknown runtime, or a workload that makes no sense.
    """
    work = workload or Workload()
    work = _checked(backends, work if threads is None else replace(work, threads=threads), repeats)
    busy = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    workers = [_Worker(backend, work, timeout_s) for backend in backends]
    try:
        for run in range(warmup + repeats):
            for worker in workers:
                if worker.spent_s < budget_s or run <= warmup:
                    worker.run(keep=run >= warmup)
                if on_event:
                    name = f"{worker.backend.runtime} {worker.backend.model}"
                    on_event(Event("speed", run + 1, warmup + repeats, name))
    finally:
        for worker in workers:
            worker.close()
    stated = {"batch": work.batch, "threads": work.threads, "prompt_tokens": work.prompt_tokens, "new_tokens": work.new_tokens}
    return [asdict(worker.backend) | stated | worker.figures() | {"machine_load": busy} for worker in workers]


def runtimes(source: Checkpoint, result: Path) -> list[Backend]:
    """What there is to time in an output directory: the original in torch, and every exported file that a runtime opens.

    Args:
        source: the original; a model that exists in memory only cannot be opened by another process, and its row will say so.
        result: the directory, with `onnx/` and `gguf/*.gguf` if they were exported.
    """
    found = [Backend("torch", source.label, "source")]
    if (result / "onnx" / "genai_config.json").is_file():
        found.append(Backend("onnxruntime-genai", str(result / "onnx"), "onnx"))
    return found + [Backend("llama.cpp", str(file), "gguf") for file in sorted((result / "gguf").glob("*.gguf"))]


def usable_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(backends: Sequence[Backend], work: Workload, repeats: int) -> Workload:
    for backend in backends:
        if backend.runtime not in RUNTIMES:
            remedy = nearest(backend.runtime, RUNTIMES)
            raise UsageError("speed", got=f"runtime {backend.runtime!r}", wanted="one of those lessen can time", remedy=remedy)
    threads = max(1, usable_processors() - 1) if work.threads is None else work.threads
    if not 1 <= threads <= usable_processors():
        raise UsageError("speed", got=f"{threads} threads", wanted=f"1 to {usable_processors()}, the processors this process may use")
    if min(work.prompt_tokens, work.batch, repeats) < 1 or work.new_tokens < 2:
        got = f"{work.prompt_tokens} prompt tokens, {work.new_tokens} new tokens, batch {work.batch}, {repeats} repeats"
        raise UsageError("speed", got=got, wanted="at least 1, 2, 1 and 1")
    return replace(work, threads=threads)


class _Worker:
    """A backend in its own process, stopped except while it runs."""

    def __init__(self, backend: Backend, work: Workload, timeout_s: float):
        self.backend, self._timeout_s, self.reason = backend, timeout_s, ""
        self.spent_s = 0.0
        self._hello: dict[str, Any] = {}
        self._runs: list[dict[str, float]] = []
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
        env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(work.threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "lessen.evaluate.speed_worker", json.dumps(asdict(backend) | asdict(work))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env)
        self._hello = self._answer()
        self._pause()

    def run(self, *, keep: bool) -> None:
        """One run, unless the backend has failed."""
        if self.reason or self._process.stdin is None:
            return
        started = time.monotonic()
        self._resume()
        self._process.stdin.write(b"run\n")
        self._process.stdin.flush()
        times = self._answer()
        self._pause()
        self.spent_s += time.monotonic() - started
        if keep and not self.reason:
            self._runs.append(times)

    def figures(self) -> dict[str, Any]:
        """What was measured, or why nothing was."""
        if self.reason:
            return {"reason": self.reason}
        figures: dict[str, Any] = {"repeats": len(self._runs)} | self._hello
        for part in ("prefill", "decode"):
            speeds = [run[f"{part}_tps"] for run in self._runs]
            figures |= {f"{part}_tps": median(speeds), f"{part}_range": [min(speeds), max(speeds)]}
        return figures | {"peak_mb": max(run["peak_mb"] for run in self._runs)}

    def close(self) -> None:
        """End the process."""
        self._process.kill()  # reaches a stopped process too
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        """The next line from the process; sets `reason` if it says that it failed, says nothing in time, or ends."""
        pipe = self._process.stdout
        assert pipe is not None
        started = time.monotonic()
        line = b""
        while not line.endswith(b"\n"):
            left = self._timeout_s - (time.monotonic() - started)
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.reason = f"not finished within {self._timeout_s:g} s"
                self._process.kill()
                return {}
            piece = os.read(pipe.fileno(), 65536)
            if not piece:
                self._log.seek(0)
                last = self._log.read().decode(errors="replace").strip().splitlines()
                self.reason = f"the process ended with code {self._process.wait()}" + (f": {last[-1]}" if last else "")
                return {}
            line += piece
        answer = json.loads(line)
        self.reason = answer.pop("reason", "")
        return answer

    def _pause(self) -> None:
        if hasattr(signal, "SIGSTOP") and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
            if hasattr(os, "waitid"):  # the signal is only on its way: wait until every thread of the process stands
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _resume(self) -> None:
        if hasattr(signal, "SIGCONT") and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
