"""The command line as a user meets it: exit codes, streams, one-line errors, help that answers at once."""

import json
import os
import resource
import subprocess
import sys

import pytest

from lessen.cli.arguments import fold
from lessen.cli.main import app, run
from lessen.cli.progress import EventPrinter, line
from lessen.core.event import Event

COMMANDS = [name for name in app if not name.startswith("-")]


def lessen(*tokens: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lessen", *tokens], capture_output=True, text=True, check=False, **options)


def call(capsys: pytest.CaptureFixture[str], *tokens: str) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    code = run(tokens)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_answers_at_once_and_without_torch():
    code = """
import sys
from lessen.cli.main import run
assert run(sys.argv[1:]) == 0
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    for command in ([], *([name] for name in COMMANDS)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *command, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert seconds < 0.5, f"--help took {seconds:.2f} s of processor time"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples_and_json(command, capsys):
    code, out, err = call(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.count(f"  lessen {command}") >= 3
    assert "--json" in out
    assert "--debug" in out


def test_the_promised_commands_exist():
    assert {"compress", "plan", "apply", "evaluate", "export", "report", "inspect", "ls"} <= set(COMMANDS)


def test_version(capsys):
    import lessen

    assert call(capsys, "--version") == (0, f"{lessen.__version__}\n", "")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["compres", "m"], "did you mean compress?"),
        (["compress", "m", "--otu", "x"], "did you mean --out?"),
        (["compress", "m", "--tokens", "many"], "got 'many', wanted a whole number"),
        (["compress"], "MODEL"),
        (["compress", "m", "--to", "5 apples"], "--to: got '5 apples'"),
        (["compress", "m", "--method", "GTPQ"], "did you mean GPTQ?"),
        (["compress", "m", "--method", "GPTQ", "--bitz", "3"], "did you mean bits?"),
        (["compress", "m", "--method", "GPTQ", "--bits", "three"], "GPTQ.bits = 'three' (str), wanted an integer"),
        (["compress", "m", "--method", "RTN", "--recipe", "r.toml"], "wanted one of the two"),
        (["compress", "m", "--recipe", "missing.toml"], "missing.toml"),
        (["compress", "smollm2-135", "--no-eval"], "did you mean smollm2-135m?"),
        (["inspect", "no/such/model"], "no/such/model"),
        (["ls", "GTPQ"], "did you mean GPTQ?"),
        (["report", "nowhere"], "no lessen.json"),
        (["report", "nowhere", "--format", "htlm"], "did you mean html?"),
        (["evaluate", "m", "--text", "x.txt"], "did you mean --eval?"),
        (["evaluate", "m", "--flavour", "x"], "choose from"),
        (["compress", "m", "--export", "gguf", "--export", "onnx"], "--export: got the option twice, wanted it once; several go into one"),
    ],
)
def test_nonsense_is_one_line_on_stderr_and_exit_code_2(tokens, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *tokens)
    assert (code, out) == (2, "")
    assert err.startswith("lessen: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_an_error_is_an_object_for_programs(capsys):
    code, out, err = call(capsys, "ls", "GTPQ", "--json")
    assert code == 2
    told = json.loads(out)
    assert told["command"] == "ls"
    assert told["error"] == {
        "message": err.removeprefix("lessen: ").strip(),
        "exit_code": 2,
        "where": "ls",
        "got": "the method GTPQ",
        "wanted": "one that exists",
        "remedy": "did you mean GPTQ?",
    }
    code, out, _ = call(capsys, "ls", "--bitz", "--json")
    assert (code, json.loads(out)["error"]["exit_code"]) == (2, 2)


def test_a_broken_file_is_exit_code_1_and_debug_shows_where(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    code, _, err = call(capsys, "inspect", str(tmp_path / "m.gguf"))
    assert code == 1
    assert err.count("\n") == 1
    code, _, err = call(capsys, "inspect", str(tmp_path / "m.gguf"), "--debug")
    assert code == 1
    assert "Traceback" in err


def test_an_interrupted_command_is_exit_code_130(monkeypatch, capsys):
    from lessen.cli import catalogue

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "catalogue", interrupted)
    assert call(capsys, "ls") == (130, "", "lessen: interrupted\n")


def test_a_defect_is_one_line_too(monkeypatch, capsys):
    from lessen.cli import catalogue

    def broken():
        raise RuntimeError("the sky\nfell")

    monkeypatch.setattr(catalogue, "catalogue", broken)
    code, _, err = call(capsys, "ls")
    assert code == 1
    assert err.count("\n") == 1
    assert "RuntimeError: the sky fell" in err


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m lessen ls --json | head -c 1"
    shell = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (shell.returncode, shell.stderr) == (0, "")


def test_completion_scripts_can_be_made(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = lessen("--install-completion", env=env)
    assert done.returncode == 0, done.stderr
    assert any("lessen" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_ls_shows_what_there_is(capsys):
    from lessen.methods import METHODS

    code, out, _ = call(capsys, "ls")
    assert code == 0
    assert all(cls.__name__ in out for cls in METHODS)
    data = json.loads(call(capsys, "ls", "--json")[1])
    assert (data["schema_version"], data["command"]) == (1, "ls")
    assert [row["method"] for row in data["methods"]] == [cls.__name__ for cls in METHODS]


def test_ls_of_a_method_shows_the_options_of_its_dataclass(capsys):
    from dataclasses import fields

    from lessen.methods import METHODS

    for cls in METHODS:
        data = json.loads(call(capsys, "ls", cls.__name__, "--json")[1])
        assert [row["option"] for row in data["options"]] == [field.name for field in fields(cls)]


@pytest.mark.parametrize(
    ("tokens", "folded"),
    [
        ("m --method GPTQ --bits 3 --out x", ["m", "--method", "GPTQ(bits=3)", "--out", "x"]),
        ("m --method=GPTQ --bits=3", ["m", "--method", "GPTQ(bits=3)"]),
        ("m --method GPTQ(bits=3) --group 64", ["m", "--method", "GPTQ(bits=3, group=64)"]),
        ("m --method RTN --no-symmetric --scale mse", ["m", "--method", "RTN(symmetric=false, scale=mse)"]),
        ("m --method RTN --symmetric --out x", ["m", "--method", "RTN(symmetric=true)", "--out", "x"]),
        ("m --method A --full-range --method B --x -1e-3", ["m", "--method", "A(full_range=true)", "--method", "B(x=-1e-3)"]),
        ("m --method A --x 7/8", ["m", "--method", "A(x='7/8')"]),
        ("m --otu x --method A", ["m", "--otu", "x", "--method", "A"]),
        ("m --method", ["m", "--method"]),
        ("m --method A -- --b c", ["m", "--method", "A", "--", "--b", "c"]),
    ],
)
def test_options_of_a_method_follow_it(tokens, folded):
    assert fold(tokens.split(), {"--method", "--out"}) == folded


def test_progress_is_plain_lines_when_nobody_watches():
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    with EventPrinter(Console(file=stream)) as on_event:
        on_event(Event("quantize", 1, 2))
        on_event(Event("quantize", 2, 2, "model.layers.1", error=0.01, bits=4.25, seconds=1.0))
        on_event(Event("export", 0, 0, "gguf [q4_0]"))
    assert stream.getvalue() == "quantize 2/2  model.layers.1  4.25 bits  error 0.01  1.0 s\nexport  gguf [q4_0]\n"


def test_progress_on_a_terminal_keeps_a_line_per_block():
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    with EventPrinter(Console(file=stream, force_terminal=True, width=100, highlight=False)) as on_event:
        for i in range(3):
            on_event(Event("quantize", i + 1, 3, f"block {i}", error=0.01, bits=4.25))
        on_event(Event("evaluate", 1, 2))
    for i in range(3):
        assert line(Event("quantize", i + 1, 3, f"block {i}", error=0.01, bits=4.25)) in stream.getvalue()
    assert "evaluate" in stream.getvalue()


def test_quiet_says_nothing():
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    with EventPrinter(Console(file=stream), quiet=True) as on_event:
        on_event(Event("quantize", 1, 2, "block 0"))
    assert stream.getvalue() == ""


def test_progress_that_nobody_reads_does_not_end_the_run():
    code = """
import os, sys
from lessen.cli.progress import EventPrinter
from lessen.core.event import Event
read, write = os.pipe()
os.close(read)
os.dup2(write, 2)
with EventPrinter() as on_event:
    on_event(Event("quantize", 1, 2, "a"))
    on_event(Event("quantize", 2, 2, "b"))
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")
