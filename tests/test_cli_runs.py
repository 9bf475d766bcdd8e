"""Commands that do real work, on a model small enough for a test: what is written, what is said, and on which stream."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lessen.cli.main import run

SCHEMA = {"schema_version", "command"}


def call(capsys: pytest.CaptureFixture[str], *tokens: str | Path) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    code = run([str(token) for token in tokens])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def run_of_compress(tiny_model: Path, tiny_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory):
    """One whole run in a process of its own, evaluation and gate included: what it wrote, and how it ended."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    calibration, held = tiny_texts
    options = ["--calibration", calibration, "--tokens", "512", "--eval", held, "--max-kld", "1e-9", "--export", "none"]
    command = [sys.executable, "-m", "lessen", "compress", tiny_model, "--out", out, *options]
    return out, subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compressed(run_of_compress) -> Path:
    return run_of_compress[0]


def test_compress_writes_a_directory_that_explains_itself(compressed: Path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "lessen.json", "README.md", "report.html"):
        assert (compressed / name).is_file(), name
    assert not [path for path in compressed.parent.iterdir() if path != compressed], "something was left beside the result"


def test_compress_says_results_on_stdout_and_progress_on_stderr(run_of_compress):
    _, done = run_of_compress
    assert "quantize 2/2  model.layers.1" in done.stderr
    assert "quantize" not in done.stdout
    assert "perplexity, held" in done.stdout
    assert "report.html" in done.stdout


def test_choices_made_for_the_user_are_said_where_the_result_is(tiny_model, tmp_path, capsys):
    """At once on stderr, so that a wrong one can be stopped, and under the table."""
    asked = ["--export", "none", "--no-eval", "--no-prove", "--tokens", "256", "--written", "0"]
    code, out, err = call(capsys, "compress", tiny_model, *asked, "--out", tmp_path / "a")
    assert code == 0
    assert "No size was asked for: linears get 4 bits" in out
    assert "choose  No size was asked for" in err
    notes = json.loads((tmp_path / "a" / "lessen.json").read_text())["notes"]
    assert all(f"- {note}" in out for note in notes)
    code, out, _ = call(capsys, "plan", tiny_model, "--tokens", "256", "--written", "0", "--quiet")
    assert "- No size was asked for: linears get 4 bits" in out
    code, out, _ = call(capsys, "plan", tiny_model, "--tokens", "256", "--written", "0", "--quiet", "--json")
    assert any("No size was asked for" in note for note in json.loads(out)["notes"])


def test_a_missed_quality_gate_is_exit_code_3_and_keeps_the_result(run_of_compress):
    out, done = run_of_compress
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("lessen: held: got a mean KL of ")
    assert (out / "lessen.json").is_file()


def test_compress_as_json_prints_the_record(tiny_model, tmp_path, capsys):
    tokens = ["compress", tiny_model, "--no-eval", "--export", "none", "--method", "RTN(scale=absmax)", "--out", tmp_path / "a"]
    code, out, err = call(capsys, *tokens, "--json", "--quiet")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data.keys() >= SCHEMA | {"run", "out"}
    assert data["run"] == json.loads((tmp_path / "a" / "lessen.json").read_text())


def test_an_existing_directory_is_not_touched(compressed: Path, tiny_model, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in compressed.iterdir()}
    code, out, err = call(capsys, "compress", tiny_model, "--out", compressed, "--no-eval")
    assert (code, out) == (2, "")
    assert "--overwrite" in err
    assert {path.name: path.stat().st_mtime_ns for path in compressed.iterdir()} == before


def test_overwrite_replaces_only_what_lessen_wrote(tiny_model, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    code, _, err = call(capsys, "compress", tiny_model, "--out", precious, "--no-eval", "--overwrite")
    assert code == 2
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert "lessen did not write" in err


def test_plan_then_apply_gives_what_compress_gives(tiny_model, tiny_texts, tmp_path, capsys):
    asked = [tiny_model, "--calibration", tiny_texts[0], "--tokens", "512", "--method", "GPTQ", "--bits", "3", "--seed", "3"]
    code, out, _ = call(capsys, "plan", *asked, "--out", tmp_path / "plan", "--quiet")
    assert code == 0
    assert "GPTQ(bits=3, group=32)" in out

    def decisions() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir() if path.name != "written.safetensors"}  # a cache

    plan = decisions()
    finish = ["--no-eval", "--export", "none", "--quiet"]
    assert call(capsys, "apply", tmp_path / "plan", "--out", tmp_path / "applied", *finish)[0] == 0
    assert call(capsys, "compress", *asked, "--out", tmp_path / "direct", *finish)[0] == 0
    assert (tmp_path / "applied" / "model.safetensors").read_bytes() == (tmp_path / "direct" / "model.safetensors").read_bytes()
    other = [*asked[:-1], "4"]
    code, _, err = call(capsys, "plan", *other, "--out", tmp_path / "plan", "--quiet")
    assert code == 2
    assert "seed: got 4, wanted 3, as when this run began" in err
    assert decisions() == plan, "something changed the plan"
    other = [*asked, "--method", "RTN"]
    other[other.index("3")] = "2"
    assert call(capsys, "plan", *other[:-2], "--out", tmp_path / "plan", "--quiet")[2].startswith(
        "lessen: GPTQ.bits: got 2, wanted 3, as when"
    )
    assert call(capsys, "plan", *other[:-2], "--out", tmp_path / "plan", "--quiet", "--fresh")[0] == 0
    assert decisions() != plan, "--fresh begins again"


def test_a_plan_without_a_directory_leaves_nothing(tiny_model, tiny_texts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code, out, _ = call(capsys, "plan", tiny_model, "--method", "RTN(scale=absmax)", "--quiet")
    assert code == 0
    assert "RTN(bits=4" in out
    assert not list(tmp_path.iterdir())


def test_apply_of_something_else_is_refused(tmp_path, capsys):
    code, _, err = call(capsys, "apply", tmp_path, "--out", tmp_path / "o")
    assert code == 2
    assert "request.json" in err
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = call(capsys, "plan", "m", "--out", tmp_path)
    assert code == 2
    assert "did not write" in err


def test_evaluate_measures_the_distance_to_the_original(compressed: Path, tiny_model, tiny_texts, capsys):
    tokens = ["evaluate", compressed, "--reference", tiny_model, "--eval", tiny_texts[1], "--windows", "4", "--length", "32"]
    code, out, _ = call(capsys, *tokens, "--json", "--quiet")
    assert code == 0
    data = json.loads(out)
    held = data["quality"]["held"]
    assert 4 < data["cost"]["bpw"] < 16
    assert held["kld_mean"] > 0
    assert call(capsys, *tokens, "--max-kld", "1e-9", "--quiet")[0] == 3
    code, out, _ = call(capsys, "evaluate", tiny_model, "--eval", tiny_texts[1], "--length", "32", "--max-kld", "1", "--quiet")
    assert code == 2 and not out, "without a reference there is nothing to judge by"


def test_export_writes_one_file_more(compressed: Path, tmp_path, capsys):
    code, out, _ = call(capsys, "export", compressed, "--format", "gguf", "--out", tmp_path / "m.gguf", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["codes_equal"] is True
    assert (tmp_path / "m.gguf").read_bytes()[:4] == b"GGUF"
    code, _, err = call(capsys, "export", compressed, "--format", "ggfu", "--out", tmp_path / "n.gguf")
    assert code == 2
    assert "did you mean gguf?" in err
    code, _, err = call(capsys, "export", compressed, "--format", "gguf", "--nonsense", "1", "--out", tmp_path / "n.gguf")
    assert code == 2
    assert "nonsense" in err


@pytest.mark.parametrize("format", ["markdown", "card"])
def test_report_draws_text_on_stdout(compressed: Path, format, capsys):
    code, out, _ = call(capsys, "report", compressed, "--format", format)
    assert code == 0
    assert "#" in out


def test_report_draws_the_page_again(compressed: Path, tmp_path, capsys):
    code, out, _ = call(capsys, "report", compressed, "--out", tmp_path / "page.html", "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()


def test_inspect_counts_and_lists_units(tiny_model, capsys):
    code, out, _ = call(capsys, "inspect", tiny_model, "--units", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["blocks"] == 2
    assert data["kinds"]["linear"] == 14
    assert len(data["units"]) == sum(data["kinds"].values())
    code, out, _ = call(capsys, "inspect", tiny_model, "--units")
    assert "model.layers.1.mlp.down_proj" in out


def test_a_recipe_file_and_its_line_in_errors(tiny_model, tiny_texts, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'calibration = "{tiny_texts[0]}"\ntokens = 512\n\n[[method]]\nname = "GPTQ"\nbits = 3\ngroup = 48\n')
    code, _, err = call(capsys, "plan", tiny_model, "--recipe", recipe, "--out", tmp_path / "plan")
    assert code == 2
    assert "wanted a divisor of 64" in err
    recipe.write_text(recipe.read_text().replace("48", "32"))
    assert call(capsys, "plan", tiny_model, "--recipe", recipe, "--out", tmp_path / "plan2", "--quiet")[0] == 0


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from lessen.cli.main import main
from lessen.cli.progress import EventPrinter
told = EventPrinter.__call__
def interrupting(self, event):
    told(self, event)
    if event.bits is not None:
        os.kill(os.getpid(), signal.SIGINT)
EventPrinter.__call__ = interrupting
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("signal", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(signal, code, word, tiny_model, tiny_texts, tmp_path):
    asked = ["compress", tiny_model, "--out", "o", "--calibration", tiny_texts[0], "--tokens", "512", "--no-eval", "--export", "none"]
    first = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("signal.SIGINT)\nEvent", f"signal.{signal})\nEvent"), *asked],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert first.returncode == code
    assert first.stderr.splitlines()[-1] == f"lessen: {word}; what is finished is kept, and the same command goes on from there"
    assert "Traceback" not in first.stderr
    assert "quantize 1/2" in first.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".o.lessen-work"], "a lock or a half result stayed"
    again = subprocess.run([sys.executable, "-m", "lessen", *asked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "quantize 1/2" not in again.stderr
    assert "quantize 2/2" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
