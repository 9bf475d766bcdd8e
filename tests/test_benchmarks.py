import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import assets, tiny, variants
from benchmarks import worker as worker_tasks
from benchmarks.harness import ROOT, Session, at_least, at_most, command, measured, result
from benchmarks.llm_quant import OURS
from benchmarks.llm_quant import goals as quant_goals
from benchmarks.material import material
from benchmarks.peers import llama_cpp
from benchmarks.resume import again, finished
from benchmarks.resume import goals as resume_goals
from lessen.errors import LessenError
from lessen.models import load

pytestmark = pytest.mark.filterwarnings("default")  # of transformers and its friends; the library's own tests are strict


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.directory(tmp_path_factory.mktemp("model") / "shipped")


@pytest.mark.parametrize("variant", ["rescaled", "rotated"])
def test_variants_are_other_weights_of_the_same_function(shipped: Path, variant: str):
    target = variants.write(shipped, variant, shipped.with_name(variant))
    before, after = load_file(shipped / "model.safetensors"), load_file(target / "model.safetensors")
    linears = [name for name in before if "_proj" in name]
    assert all(not torch.equal(before[name], after[name]) for name in linears)
    tokens = tiny.tokens(2, 32, seed=0)
    with torch.no_grad():
        a, b = load(shipped)(tokens).logits, load(target)(tokens).logits
    # float32 rounding, twice: once of the weights and once of the sums, relative to the largest logit
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(a.abs().max()))


def test_rotation_unties_the_head_and_says_so_in_the_configuration(shipped: Path):
    target = variants.write(shipped, "rotated", shipped.with_name("rotated"))
    assert not json.loads((target / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" in load_file(target / "model.safetensors")


def test_grid_of_sixteen_levels_is_recognised_whatever_its_scale_and_minimum():
    random = torch.Generator().manual_seed(0)
    scale, minimum = (torch.rand(8, 1, generator=random).half().float() for _ in range(2))
    codes = torch.randint(16, (8, 32), generator=random)
    assert variants.off_grid(scale * codes - minimum) == 0
    assert variants.off_grid((scale * codes - minimum) * torch.linspace(0.9, 1.1, 32)) == 1


def test_finished_rows_survive_a_kill_and_other_settings_do_not_take_them(tmp_path: Path):
    side = tmp_path / "x.rows.jsonl"
    Session("x", side=side).row("a", lambda: {"value": 1})
    with side.open("a") as file:
        file.write('{"key": "b", "row": {"val')  # killed while writing

    def never() -> dict[str, int]:
        raise AssertionError("a finished row was measured again")

    again = Session("x", side=side)
    row = again.row("a", never)
    assert row is not None and row["value"] == 1
    assert "b" not in again.kept
    assert again.row("c", lambda: {"skipped": "no network"}) is not None
    assert "c" not in Session("x", side=side).kept
    assert Session("x", side=side, again="a").kept == {}
    assert Session("x", side=side).row("a", lambda: {"value": 2}) == {"key": "a", "value": 2, "wall_seconds": 0.0}
    assert Session("x", side=side, smoke=True).kept == {}


def test_only_takes_up_the_rows_that_are_named(tmp_path: Path):
    session = Session("x", side=tmp_path / "x.rows.jsonl", only="wanted")
    assert session.row("other", lambda: {}) is None
    assert session.row("the wanted one", lambda: {"value": 2}) is not None


def test_result_has_the_fields_that_tables_read():
    data = result("python -m benchmarks x", {}, [{"key": "a", "wall_seconds": 2.0}], [at_least("g", 3.0, 2), at_most("h", None, 1)])
    assert data.keys() == {"command", "env", "seconds", "rows", "goals"}
    assert [goal["met"] for goal in data["goals"]] == [True, None]
    assert data["seconds"] == 2.0


def test_processes_are_measured_from_outside_and_alone():
    burn = "import time\nx = bytearray(80 << 20)\nwhile time.process_time() < 0.3: pass"
    small, large = measured([sys.executable, "-c", "pass"]), measured([sys.executable, "-c", burn])
    assert large["cpu_seconds"] >= 0.3 > small["cpu_seconds"]
    assert large["peak_mb"] - small["peak_mb"] > 70  # 80 MiB were asked for; the interpreter's own size varies by a few
    assert small["peak_mb"] < 50  # and not this process's, which has torch in it
    assert measured([sys.executable, "-c", "while True: pass"], timeout=0.2)["code"] == -9


SLOW_BENCHMARK = """
import sys, types
from benchmarks import __main__ as program
from benchmarks.harness import measured, stop_when_told
slow = types.ModuleType("slow")
slow.goals = lambda rows: []
slow.rows = lambda session: [session.row("a", lambda: {"x": 1}), session.row("b", lambda: measured(["sleep", "61.5"]))]
sys.modules["slow"], program.BENCHMARKS["slow"] = slow, ("slow", "")
stop_when_told()
sys.exit(program.main(["slow", "--json", sys.argv[1]]))
"""


@pytest.mark.parametrize("whom", ["the benchmark", "what it measures"])
def test_a_benchmark_that_is_told_to_end_writes_no_result_and_keeps_its_rows(tmp_path: Path, whom: str):
    out = tmp_path / "slow.json"
    command = [sys.executable, "-c", SLOW_BENCHMARK, str(out)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        me, deadline = psutil.Process(process.pid), time.monotonic() + 30
        while not (sleeps := [child for child in me.children(recursive=True) if child.name() == "sleep"]):
            assert time.monotonic() < deadline, "the command was not started"
            time.sleep(0.05)
        (process if whom == "the benchmark" else sleeps[0]).send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not out.exists()
    assert [json.loads(line).get("key") for line in out.with_suffix(".rows.jsonl").read_text().splitlines()] == [None, "a"]
    assert not sleeps[0].is_running(), "what it had started goes on"


def test_brown_text_reads_like_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LESSEN_ASSETS", str(tmp_path))
    folder = tmp_path / "brown" / "package"
    folder.mkdir(parents=True)
    (folder / "ca01").write_text("\n\n\tThe/at jury/nn said/vbd :/: ``/`` No/rb ''/'' ./.\n\n\n\tIt/pps rose/vbd ,/, then/rb ./.\n")
    (folder / "README").write_text("not a document")
    assert assets.brown() == {"ca01": 'The jury said: "No".\n\nIt rose, then.'}


def test_an_asset_that_cannot_be_fetched_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LESSEN_ASSETS", str(tmp_path))

    def fetch(folder: Path) -> None:
        (folder / "half").write_text("...")
        raise OSError("no network")

    with pytest.raises(LessenError, match="asset thing: got no network, wanted a download; plug it in"):
        assets.fetched("thing", fetch, "plug it in")
    assert list(tmp_path.iterdir()) == []


def test_goals_of_llm_quant_compare_with_the_right_baseline_on_each_text():
    def row(bits: int, group: int, method: str, near: float, far: float) -> dict[str, object]:
        key = f"rescaled W{bits} g{group} {method}"
        return {"key": key, "near_kld": near, "far_kld": far, "cpu_seconds": 200.0}

    rows = [row(4, 64, OURS, 0.1, 0.2), row(4, 64, "RTN mse", 0.4, 0.4), row(4, 32, OURS, 0.1, 0.1)]
    goals = {goal.name: goal for goal in quant_goals(rows)}
    assert (goals["W4 g64 near: KL below RTN mse"].value, goals["W4 g64 near: KL below RTN mse"].met) == (75.0, True)
    assert (goals["W4 g64 far: KL below RTN mse"].value, goals["W4 g64 far: KL below RTN mse"].met) == (50.0, False)
    assert goals["W4 g32 near: KL below RTN absmax"].met is None
    assert goals["W4 g64: CPU-seconds"].met


def test_a_run_that_ended_before_it_was_killed_does_not_count():
    kills = [{"at_step": i, "steps_on_disk": i, "was_running": i < 3} for i in (1, 2, 3)]
    goals = resume_goals([{"key": "killed", "kills": kills, "steps_lost": 0, "equal": True}])
    assert [goal.met for goal in goals] == [False, True, True]


def test_the_tables_of_the_readme_are_those_of_the_results():
    from benchmarks.tables import README, fresh

    assert fresh(README.read_text()) == README.read_text()


def test_a_row_is_measured_again_beside_those_of_a_finished_result(tmp_path: Path):
    rows = [{"key": "ours", "value": 1, "wall_seconds": 2.0}, {"key": "peer + imatrix", "value": 1, "wall_seconds": 2.0}]
    (tmp_path / "x.json").write_text(json.dumps(result(command("x", False), {"threads": 1}, rows, [])))
    side = tmp_path / "x.rows.jsonl"
    assert Session("x", side=side, again="imatrix", threads=2).kept == {}, "measured otherwise"
    side.unlink()
    assert Session("x", side=side, again="imatrix").kept == {"ours": rows[0]}
    side.unlink()
    assert Session("x", side=side).kept == {}, "nobody asked to keep anything"


def test_a_step_that_is_computed_again_after_a_kill_is_told(tmp_path: Path):
    out = tmp_path / "out"
    work = tmp_path / ".out.lessen-work"
    work.mkdir()
    for step in (0, 1):
        (work / f"pass0-step000{step}.json").write_text("[]")
    kept = finished(out)
    assert len(kept) == 2 and again(out, kept) == set()
    (work / "pass0-step0002.json").write_text("[]")
    assert again(out, kept) == set(), "a step more is none lost"
    (work / "aside").write_text("[]")
    (work / "aside").replace(work / "pass0-step0000.json")  # the same bytes, computed again
    assert again(out, kept) == {"pass0-step0000.json"}
    shutil.rmtree(work)
    assert again(out, kept) == set(kept), "a run that starts afresh"
    out.mkdir()
    assert again(out, kept) == set(), "a finished run tidies up"


def test_the_peers_importance_matrix_sees_the_windows_of_our_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LESSEN_ASSETS", str(tmp_path / "assets"))
    arguments = {"smoke": True, "variant": "shipped", "method": "default", "work": str(tmp_path / "work"), "written": 0.5}
    text = worker_tasks._job(arguments).text
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(llama_cpp, "importance", lambda _, tokens: seen.append(tokens) or {})
    monkeypatch.setattr(llama_cpp, "requantize", lambda *_: None)
    worker_tasks.llama_cpp(arguments | {"path": "x.gguf", "guided": True})
    assert text is not None and torch.equal(seen[0], text.calibration)
    documentation = material(True).windows("calibration")["calibration"]
    assert not torch.equal(seen[0][len(seen[0]) // 2 :], documentation[len(seen[0]) // 2 :]), "half is written by the model"


def test_the_start_of_every_command_is_timed():
    from benchmarks import start
    from lessen.cli.main import app

    assert {"", "compress", "recover"} <= set(start.COMMANDS)
    assert {"analog", "analog simulate"} <= set(start.COMMANDS), "and those within a group"
    assert {name for name in start.COMMANDS if name and " " not in name} == {name for name in app if not name.startswith("-")}
