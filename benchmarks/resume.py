"""A run that is killed at three random places and resumed each time gives the bits of an undisturbed run.

The run is the command line in a process of its own; SIGKILL gives it no chance to tidy up. It is killed when a random number of steps
(decoder blocks) are on disk, plus a random part of the time that a step takes, so that it dies in the middle of work and of writing.
After each kill the finished steps are remembered by their files (inode and time of writing); the run that goes on is watched until
its result is in place, and every remembered step that it writes again, or removes, was lost. A run that started afresh would lose all.
All files of the result are compared, `lessen.json` without what tells of the run itself (times, notes, the command, the folder); model
card and report are drawn from it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks import tiny
from benchmarks.harness import ROOT, Goal, Row, Session, at_least, at_most
from benchmarks.material import material

KILLS = 3
SEED = 0
OF_THE_RUN = ("seconds", "notes", "command", "environment")
DRAWN = ("README.md", "report.html")
Stamps = dict[str, tuple[int, int]]
"""Inode and time of writing, by name of a file."""


def rows(session: Session) -> Iterator[Row | None]:
    with tempfile.TemporaryDirectory() as folder:
        if session.smoke:
            model, options, kills = tiny.directory(Path(folder) / "model", num_hidden_layers=4), ["--tokens", "1024"], 1
            options += ["--calibration", str(tiny.text(Path(folder) / "text.txt"))]
        else:
            model, options, kills = material().model("rescaled"), ["--tokens", "4096"], KILLS
        options += ["--threads", str(session.threads), "--export", "gguf", "--no-eval", "--quiet"]
        straight = session.row("undisturbed", lambda: _undisturbed(model, Path(folder) / "straight", options))
        yield straight
        if straight is not None:
            yield session.row("killed", lambda: _killed(model, Path(folder) / "killed", options, kills, straight))


def _undisturbed(model: Path, out: Path, options: list[str]) -> Row:
    start = time.perf_counter()
    process = _start(model, out, options)
    steps = 0
    while process.poll() is None:
        steps = max(steps, _steps(out))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"lessen compress: exit code {process.returncode}")
    return {"steps": steps, "seconds": round(time.perf_counter() - start, 2), "sha256": _hashes(out)}


def _killed(model: Path, out: Path, options: list[str], kills: int, straight: Row) -> Row:
    random_ = random.Random(SEED)
    places = sorted(random_.sample(range(1, straight["steps"]), kills))
    pause_s = straight["seconds"] / straight["steps"]
    killed: list[Row] = []
    kept: Stamps = {}
    lost: set[str] = set()
    for place in places:
        process = _start(model, out, options)
        while process.poll() is None and _steps(out) < place:
            lost |= again(out, kept)
            time.sleep(0.02)
        time.sleep(random_.random() * pause_s)
        alive = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if alive else None
        process.wait()
        lost |= again(out, kept)
        kept = finished(out)
        killed.append({"at_step": place, "steps_on_disk": len(kept), "was_running": alive})
        if not alive and process.returncode == 0:
            break  # a machine that became faster has finished before it was killed: nothing is left to resume
    else:
        process = _start(model, out, options)
    while process.poll() is None:
        lost |= again(out, kept)
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"lessen compress, resumed: exit code {process.returncode}")
    hashes = _hashes(out)
    return {"kills": killed, "steps_lost": len(lost), "sha256": hashes, "equal": hashes == straight["sha256"]}


def _start(model: Path, out: Path, options: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lessen", "compress", str(model), "--out", str(out), *options]
    env = os.environ | {"OMP_NUM_THREADS": options[options.index("--threads") + 1], "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def finished(out: Path) -> Stamps:
    """Finished steps in the run's work directory, which lies beside its output."""
    found: Stamps = {}
    for path in (out.parent / f".{out.name}.lessen-work").glob("pass*-step*.json"):
        with suppress(FileNotFoundError):  # the run removes its directory when it is done
            told = path.stat()
            found[path.name] = told.st_ino, told.st_mtime_ns
    return found


def again(out: Path, kept: Stamps) -> set[str]:
    """Steps of `kept` that the run has written again or thrown away; none once its result stands, when it may tidy up."""
    now = finished(out)
    return set() if out.exists() else {name for name, stamp in kept.items() if now.get(name) != stamp}


def _steps(out: Path) -> int:
    return len(finished(out))


def _hashes(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in DRAWN)
    return {str(path.relative_to(out)): sha256(_content(path)).hexdigest() for path in files}


def _content(path: Path) -> bytes:
    if path.name != "lessen.json":
        return path.read_bytes()
    return json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True).encode()


def _lasting(data: Any) -> Any:
    """A record without what differs from run to run."""
    if isinstance(data, dict):
        return {key: _lasting(value) for key, value in data.items() if key not in OF_THE_RUN}
    return [_lasting(value) for value in data] if isinstance(data, list) else data


def goals(rows: list[Row]) -> list[Goal]:
    """Equal bits after every kill, and no finished step lost."""
    killed = next((row for row in rows if row["key"] == "killed"), None)
    alive = None if killed is None else float(sum(kill["was_running"] for kill in killed["kills"]))
    return [
        at_least("killed while running, times", alive, KILLS),
        at_least("files with the same bits, share", None if killed is None else float(killed["equal"]), 1),
        at_most("finished blocks lost", None if killed is None else float(killed["steps_lost"]), 0),
    ]
