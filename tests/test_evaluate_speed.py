"""Speed: turns, processes of their own, real runtimes on a tiny model, and reasons instead of gaps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lessen.core.event import Event
from lessen.errors import UsageError
from lessen.evaluate import speed, speed_worker
from lessen.evaluate.speed import Backend, Workload, measure, runtimes, usable_processors
from lessen.export import export
from lessen.models import open_checkpoint
from tests.export_fixture import Solved, four_bits, llama

SMALL = Workload(prompt_tokens=8, new_tokens=4, threads=1, vocab=300)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory with the exports that the installed packages allow."""
    folder = tmp_path_factory.mktemp("result")
    (folder / "gguf").mkdir()
    solved: Any = Solved(llama(), four_bits)
    pytest.importorskip("gguf")
    pytest.importorskip("onnx")
    export(solved, folder / "gguf" / "model.gguf", "gguf")
    export(solved, folder / "onnx", "onnx")
    return folder


def test_every_runtime_is_timed_in_turns_with_its_conditions_stated(tiny_model, result):
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("xllamacpp")
    backends = runtimes(open_checkpoint(tiny_model), result)
    assert [(b.runtime, b.model) for b in backends] == [("torch", "source"), ("onnxruntime-genai", "onnx"), ("llama.cpp", "gguf")]
    heard: list[Event] = []
    rows = measure(backends, SMALL, repeats=2, timeout_s=120, on_event=heard.append)
    assert [e.message for e in heard] == ["torch source", "onnxruntime-genai onnx", "llama.cpp gguf"] * 3
    for row in rows:
        assert "reason" not in row, row
        assert (row["batch"], row["threads"], row["prompt_tokens"], row["new_tokens"], row["repeats"]) == (1, 1, 8, 4, 2)
        for part in ("prefill", "decode"):
            assert 0 < row[f"{part}_range"][0] <= row[f"{part}_tps"] <= row[f"{part}_range"][1]
        assert row["version"] and row["load_s"] > 0 and row["peak_mb"] > 10


def test_what_cannot_run_is_a_row_with_its_reason(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    backends = [Backend("onnxruntime-genai", str(tmp_path)), Backend("llama.cpp", str(tmp_path / "none.gguf"))]
    rows = measure(backends, SMALL, repeats=1, timeout_s=60)
    assert "no genai_config.json" in rows[0]["reason"] and "no file" in rows[1]["reason"]
    assert all("decode_tps" not in row and row["threads"] == 1 for row in rows)
    batched = measure([Backend("llama.cpp", str(tmp_path / "bad.gguf"))], Workload(8, 4, batch=2, threads=1), repeats=1)
    assert "batch 1 only" in batched[0]["reason"]


def test_a_process_that_dies_or_hangs_is_a_row_with_its_reason(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    monkeypatch.setattr(speed.sys, "executable", str(fake))
    scripts = (("echo why >&2; exit 3", 30.0, "ended with code 3: why"), ("exec sleep 60", 0.5, "not finished within 0.5 s"))
    for script, timeout_s, message in scripts:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        started = time.monotonic()
        row = measure([Backend("torch", "x")], SMALL, repeats=1, timeout_s=timeout_s)[0]
        assert message in row["reason"] and time.monotonic() - started < 40


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
def test_a_backend_that_waits_is_stopped_and_ends_with_its_parent(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "{}"\nwhile read line; do echo \'{"prefill_tps": 1, "decode_tps": 2, "peak_mb": 3}\'; done\n')
    fake.chmod(0o755)
    monkeypatch.setattr(speed.sys, "executable", str(fake))
    states = []

    def look(_: Event) -> None:
        here = str(os.getpid())
        stats = [path.read_text().rsplit(")", 1)[1].split() for path in Path("/proc").glob("[0-9]*/stat")]
        states.append([fields[0] for fields in stats if fields[1] == here])

    rows = measure([Backend("torch", "a"), Backend("torch", "b")], SMALL, repeats=2, warmup=0, on_event=look)
    assert [row["decode_tps"] for row in rows] == [2, 2]
    assert len(states) == 4 and all(state.count("T") >= 2 for state in states)


def test_a_backend_that_used_up_its_time_is_counted_once(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "{}"\nwhile read line; do echo \'{"prefill_tps": 1, "decode_tps": 2, "peak_mb": 3}\'; done\n')
    fake.chmod(0o755)
    monkeypatch.setattr(speed.sys, "executable", str(fake))
    assert [measure([Backend("torch", "x")], SMALL, repeats=4, budget_s=b)[0]["repeats"] for b in (0.0, 1e9)] == [1, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends children with their parent")
def test_a_stopped_worker_ends_when_its_parent_is_killed():
    """A shell starts a worker and is killed; the stopped worker must not stay behind."""
    code = (
        "import subprocess, sys, time\n"
        "command = [sys.executable, '-c', 'import os, time; from lessen.evaluate import speed_worker as w; w._die_with_parent(); "
        "print(os.getpid(), flush=True); time.sleep(60)']\n"
        "child = subprocess.Popen(command)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    for _ in range(100):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


@pytest.mark.parametrize(
    ("backend", "work", "repeats", "message"),
    [
        (Backend("onnxruntime", "x"), SMALL, 1, "did you mean onnxruntime-genai"),
        (Backend("torch", "x"), Workload(threads=10_000), 1, "10000 threads, wanted 1 to"),
        (Backend("torch", "x"), Workload(threads=0), 1, "0 threads"),
        (Backend("torch", "x"), Workload(new_tokens=1, threads=1), 1, "1 new tokens"),
        (Backend("torch", "x"), SMALL, 0, "0 repeats"),
    ],
)
def test_workloads_without_sense_are_refused(backend, work, repeats, message):
    with pytest.raises(UsageError, match=message):
        measure([backend], work, repeats=repeats)


def test_one_processor_is_left_free_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(speed, "usable_processors", lambda: 8)
    assert speed._checked([], Workload(), 1).threads == 7
    monkeypatch.setattr(speed, "usable_processors", lambda: 1)
    assert speed._checked([], Workload(), 1).threads == 1
    assert usable_processors() >= 1


def test_prompts_fit_the_vocabulary_and_differ_between_rows():
    rows = speed_worker.prompts({"batch": 3, "prompt_tokens": 50, "vocab": 17})
    assert len({tuple(row) for row in rows}) == 3 and all(0 <= token < 17 for row in rows for token in row)


def test_llama_cpp_that_answers_from_its_cache_is_not_believed(monkeypatch, tmp_path):
    times = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 4, "predicted_ms": 2.0}
    server = SimpleNamespace(handle_completions=lambda request: {"timings": times})

    class Params(SimpleNamespace):
        model, cpuparams, cpuparams_batch = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()

    stub: Any = SimpleNamespace(CommonParams=Params, Server=lambda params: server)
    monkeypatch.setitem(sys.modules, "xllamacpp", stub)
    (tmp_path / "m.gguf").touch()
    run = speed_worker.llamacpp_run({"batch": 1, "path": tmp_path / "m.gguf", "prompt_tokens": 8, "new_tokens": 4, "threads": 3})
    assert Params.cpuparams.n_threads == Params.cpuparams_batch.n_threads == 3
    with pytest.raises(RuntimeError, match="did not do the work"):
        run([[1] * 8])
    times["prompt_n"] = 8
    assert run([[1] * 8]) == (0.001, 0.002)


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'lessen\[onnx\]'"):
        speed_worker._module("no_such_package_at_all", "onnx")
