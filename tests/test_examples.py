"""The examples run, on a model small enough for a test."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_every_example_has_a_test():
    tests = Path(__file__).read_text()
    assert all(f'"{path.name}"' in tests for path in EXAMPLES.glob("*.py"))


@pytest.mark.runtime
def test_compressing_from_python(tiny_model: Path, tiny_texts: tuple[Path, Path], tmp_path: Path, capsys):
    options = {"calibration": tiny_texts[0], "tokens": 512, "evaluate": False, "exports": ()}
    example("compress_from_python.py")(str(tiny_model), str(tmp_path / "out"), **options)
    said = capsys.readouterr().out
    assert "bits per weight" in said
    assert "LlamaForCausalLM with" in said
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_method_of_ones_own(tiny_model: Path, tiny_texts: tuple[Path, Path], capsys):
    example("own_method.py")(str(tiny_model), calibration=tiny_texts[0], tokens=512)
    said = capsys.readouterr().out
    assert "Clipped was the better one for" in said


@pytest.mark.runtime
def test_pruning_then_quantizing(tiny_model: Path, tiny_texts: tuple[Path, Path], tmp_path: Path, capsys):
    options = {"calibration": tiny_texts[0], "tokens": 512, "evaluate": False, "exports": ()}
    example("prune_then_quantize.py")(str(tiny_model), str(tmp_path / "out"), **options)
    before, after = capsys.readouterr().out.splitlines()[-1].replace(",", "").replace(" parameters became ", " ").split()[:2]
    assert int(after) < int(before)


def test_pruning_any_model(tmp_path: Path, capsys):
    example("prune_any_model.py")(str(tmp_path / "small"), steps=6)
    said = capsys.readouterr().out.splitlines()
    readme = (EXAMPLES.parent / "README.md").read_text()
    cut = [line for line in said if line.endswith(" removed")]
    assert len(cut) >= 4 and all(line in readme for line in cut)  # what the README shows is what is printed
    assert said[-1] == f"114,989 parameters in {tmp_path / 'small'}"


def test_recovering_from_python(tiny_model: Path, capsys):
    example("recover_from_python.py")(str(tiny_model), "20%", 0.05, tokens=2048)
    before, after = capsys.readouterr().out.splitlines()[0].replace(",", "").replace(" parameters became ", " ").split()[:2]
    assert int(after) < int(before)


def test_a_network_on_an_analog_chip(capsys):
    found = example("analog_from_python.py")()
    said = capsys.readouterr().out
    assert "on a digital accelerator" in said and "digital:" in said
    first, _, last = (row["mean"] for row in found["aged"])
    assert first > last > 0.5 and found["loss"] <= 0.1
