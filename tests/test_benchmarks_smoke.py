"""Every benchmark runs in its smoke size and writes what it promises; figures of a random model mean nothing and are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, main

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]  # warnings of transformers and of the runtimes are theirs


FORKS = ("prune_coverage",)
"""Forks as it goes, which a process with threads must not: a lock that one of them holds is never let go in the child."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("assets")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_smoke_size_writes_rows_and_goals(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LESSEN_ASSETS", str(cache))
    out = tmp_path / f"{name}.json"
    arguments = [name, "--smoke", "--json", str(out)]
    if name in FORKS:
        command = [sys.executable, "-m", "benchmarks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert main(arguments) == 0
    data = json.loads(out.read_text())
    assert data["command"] == f"python -m benchmarks {name} --smoke"
    assert data["env"]["threads"] == 1 and "torch" in data["env"]["versions"]
    assert data["rows"] and all("key" in row and "skipped" not in row and "reason" not in row for row in data["rows"])
    assert data["goals"] and all(goal.keys() == {"name", "value", "target", "met"} for goal in data["goals"])


def test_a_worker_answers_in_a_process_of_its_own(cache: Path):
    command = [sys.executable, "-m", "benchmarks.worker", "make", json.dumps({"path": str(cache / "made"), "sizes": {}})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])) == (0, {})
    assert (cache / "made" / "model.safetensors").exists()
