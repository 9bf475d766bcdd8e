"""What a run that ended badly leaves: finished steps for the next one, a lock for nobody, nothing in the place of the result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lessen
from lessen.core.record import Run
from lessen.engine.lock import alone
from lessen.engine.steps import Steps
from lessen.errors import LessenError, UsageError
from lessen.methods import RTN


class Died(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def test_a_second_run_is_told_who_is_at_work_and_a_dead_one_blocks_nobody(tmp_path: Path):
    code = "import sys, pathlib, time; from lessen.engine.lock import alone\n"
    code += "with alone(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LessenError, match=rf"process {other.pid}\), wanted one run at a time; wait for it"), alone(tmp_path / "w"):
            pass
        with alone(tmp_path / "elsewhere"):
            pass
        other.kill()
    assert (tmp_path / "w.lock").exists()
    with alone(tmp_path / "w", tmp_path / "w"):
        assert (tmp_path / "w.lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_by_the_lock(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="wanted a directory that can be written"), alone(tmp_path / "file" / "w"):
        pass


def test_a_finished_step_is_taken_from_disk_and_a_changed_one_is_not(tmp_path: Path):
    result, done = tmp_path / "result", []
    result.mkdir()

    def steps(run: Run, text: str, note: str) -> bool:
        def work() -> None:
            done.append(text)
            (result / "a.txt").write_text(text)
            run.notes.append(f"wrote {text}")
            run.quality = {"t": {"ppl": 2.0}}

        run.notes.append(note)
        return Steps(tmp_path / "kept", result, run).take("write", {"text": text}, work, ["a.txt"])

    first, second, third, fourth = Run(), Run(), Run(), Run()
    assert not steps(first, "x", "before")
    assert steps(second, "x", "another note before")
    assert second.notes == ["another note before", "wrote x"]
    assert (second.quality, second.seconds) == (first.quality, first.seconds)
    assert not steps(third, "y", "before"), "what it depends on has changed"
    (result / "a.txt").write_text("touched")
    assert not steps(fourth, "y", "before"), "its file has changed"
    assert done == ["x", "y", "y"]


def test_a_step_that_fails_leaves_none_of_its_files(tmp_path: Path):
    def work() -> None:
        (tmp_path / "half").write_text("half")
        raise Died

    with pytest.raises(Died):
        Steps(tmp_path / "kept", tmp_path, Run()).take("write", {}, work, ["half"])
    assert not (tmp_path / "half").exists()
    assert not list((tmp_path / "kept").glob("*"))


def asked(model: Path, held: Path, out: Path, **options):
    request = {"recipe": [RTN(4, 32, scale="absmax")], "evaluation": [held], "exports": ["gguf"], "threads": 1}
    return lessen.compress(model, out, **(request | options))


def times(folder: Path) -> dict[str, int]:
    """When the files with weights were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".safetensors", ".gguf")}


def test_a_run_that_dies_while_it_measures_speed_repeats_nothing_else(tiny_model, tiny_texts, tmp_path, monkeypatch):
    from lessen.evaluate import speed

    def dying(*_, **__):
        raise Died

    def row(*_, **__):
        return [{"runtime": "torch", "model": "source", "path": "p", "reason": "not measured in this test"}]

    monkeypatch.setattr(speed, "measure", dying)
    old = tmp_path / "out"
    old.mkdir()
    (old / "lessen.json").write_text("{}")
    with pytest.raises(Died):
        asked(tiny_model, tiny_texts[1], old, overwrite=True)
    assert (old / "lessen.json").read_text() == "{}", "the old result stays until the other is complete"
    kept = times(tmp_path / ".out.lessen-work" / "result")
    assert {"model.safetensors", "model.gguf"} <= kept.keys()
    monkeypatch.setattr(speed, "measure", row)
    told = []
    run = asked(tiny_model, tiny_texts[1], old, overwrite=True, on_event=told.append)
    taken = [event.phase for event in told if "run before" in event.message]
    assert taken == ["write", "export gguf", "evaluate", "samples"]
    assert times(old) == kept
    assert [row["format"] for row in run.exports] == ["huggingface", "gguf"]
    assert run.quality["held"]["kld_mean"] > 0
    assert run.seconds.keys() >= {"compress", "write", "export gguf", "evaluate", "samples", "speed"}
    assert len(run.notes) == len(set(run.notes)), "a note was said twice"
    assert json.loads((old / "lessen.json").read_text())["quality"] == run.quality
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_exports_after_a_kill_do_not_mix_with_the_old_ones(tiny_model, tiny_texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lessen.compress"], "_report", lambda *_: (_ for _ in ()).throw(Died()))
        with pytest.raises(Died):
            asked(tiny_model, tiny_texts[1], tmp_path / "out", evaluate=False)
    run = asked(tiny_model, tiny_texts[1], tmp_path / "out", evaluate=False, exports=[])
    assert [row["format"] for row in run.exports] == ["huggingface"]
    assert not (tmp_path / "out" / "gguf").exists()
