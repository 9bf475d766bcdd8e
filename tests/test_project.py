"""The project's own files keep their promises."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_dependency_is_pinned_and_torch_to_the_tested_version():
    assert CONSTRAINTS["torch"] == "2.13.0"
    wanted = [*PROJECT["dependencies"], *(item for extra in PROJECT["optional-dependencies"].values() for item in extra)]
    names = {normal(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in wanted} - {"lessen"}
    assert names <= CONSTRAINTS.keys()


def test_constraints_name_versions_and_no_hosts():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+", line), line


def test_few_things_are_needed_at_run_time():
    names = {normal(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "cyclopts", "rich", "jinja2"}
    assert {"hf", "onnx", "gguf", "report", "dev"} <= PROJECT["optional-dependencies"].keys()


def test_make_has_the_promised_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("setup", "demo", "test", "bench", "docs", "lint", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_licence_is_apache():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_file_names_a_machine_or_carries_weights():
    machine = re.compile(r"(?<![\w.])/(?:work|home|root|Users|tmp)/\w")
    for path in tracked():
        assert path.stat().st_size < 2**20, f"{path} is larger than a source file should be"
        assert path.suffix not in {".gguf", ".safetensors", ".pt", ".onnx", ".bin", ".pkl"}, path
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = machine.search(text)
        assert not found, f"{path}: {found[0] if found else ''}"
