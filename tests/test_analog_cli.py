"""`lessen analog`: chips are listed and described, networks simulated, priced, made robust and searched for, on models of seconds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_cli_runs import call

HERE = "tests.test_analog_cli"


def network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    net = network()
    for _ in range(8):
        x = torch.randn(64, 16, generator=random)
        yield x, net(x).argmax(-1)


def loudness(model: nn.Module) -> dict[str, float]:
    return {"loudness": float(model(torch.ones(1, 16)).abs().mean())}


def broken(model: nn.Module) -> float:
    raise ValueError("no idea")


SEEN: list[int] = []


def sometimes(model: nn.Module) -> dict[str, float]:
    """Two of every four answers are no number."""
    SEEN.append(1)
    return {"odd": float("nan") if len(SEEN) % 4 == 3 else float("inf") if len(SEEN) % 4 == 0 else 1.0}


def normed() -> Any:
    """A network of another kind: it tells its example, returns no classes, and has batch norms."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net: Any = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(36, 1)).eval()
    net.example_inputs = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    return net


def experts() -> Any:
    """A mixture of experts from transformers that reads vectors."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=16, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = MixtralSparseMoeBlock(config)
        for p in block.parameters():
            nn.init.normal_(p, std=0.4)
        net: Any = nn.Sequential(nn.Linear(16, 16), block, nn.Linear(16, 4)).eval()
    net.example_inputs = torch.randn(8, 12, 16, generator=torch.Generator().manual_seed(0))
    return net


OURS = [f"{HERE}:network", "--batches", f"{HERE}:batches", "--chip"]


def told(capsys: Any, *tokens: Any) -> dict[str, Any]:
    """What a command says to programs."""
    code, out, err = call(capsys, "analog", *tokens, "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    assert found["command"] == f"analog {tokens[0]}"
    return found


def test_nested_commands_explain_themselves_without_torch():
    """The top one among them is tested with all the others; these are its children."""
    code = """
import sys
from lessen.cli.main import app, run
names = [name for name in app["analog"] if not name.startswith("-")]
assert set(names) >= {"presets", "describe", "simulate", "cost", "robust", "methods", "explore"}, names
for name in names:
    assert run(["analog", name, "--help"]) == 0
assert "torch" not in sys.modules and "numpy" not in sys.modules and "lessen.analog.chip" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for name in ("presets", "describe", "simulate", "cost", "robust", "methods", "explore"):
        assert found.stdout.count(f"  lessen analog {name}") >= 3, name
    assert found.stdout.count("--debug") == 7


def test_every_preset_is_listed_with_its_source(capsys: Any):
    from lessen.analog.chipfile import presets

    rows = told(capsys, "presets")["presets"]
    assert [row["name"] for row in rows] == list(presets())
    assert all(row["source"] and row["device"] and " x " in row["array"] for row in rows)
    code, out, _ = call(capsys, "analog", "presets")
    assert code == 0 and "pcm-hermes" in out and "Le Gallo" in out


def test_a_description_is_a_chip_file(tmp_path: Path, capsys: Any):
    from lessen.analog import chipfile

    file = tmp_path / "mine.toml"
    code, out, _ = call(capsys, "analog", "describe", "isaac", "--out", file)
    assert (code, out.strip()) == (0, str(file))
    assert chipfile.load(file) == chipfile.preset("isaac")
    code, out, _ = call(capsys, "analog", "describe", file)
    assert code == 0 and chipfile.loads(out) == chipfile.preset("isaac")
    assert "# devices for a weight: 8" in out and "# weight columns of a tile: 16" in out and "# reads for an input vector: 15" in out
    figures = told(capsys, "describe", "isaac")["derived"]
    assert figures["bits of the ADC"] == "8 with the sign" and figures["bits of a lossless ADC"].startswith(
        "10 with the sign, for 128 rows"
    )
    assert figures["IR drop"] == "none described (wires.ohm = 0)"
    assert figures["reference columns of a tile"].startswith("8 beside the 128 of weights, one for each digit of a weight;")
    assert call(capsys, "analog", "describe", "isaac", "--out", file)[0] == 2


def test_a_simulation_is_the_same_from_python_and_goes_on(tmp_path: Path, capsys: Any):
    from lessen.analog.run.job import simulated
    from lessen.analog.run.subject import Data

    options = [*OURS, "pcm-nandakumar", "--times", "20s,1y", "--chips", "3", "--out", tmp_path / "out"]
    run = told(capsys, "simulate", *options)["run"]
    assert [m["name"] for m in run["metrics"]] == ["accuracy", "sqnr_db", "top1"]
    (found,) = run["qualities"]
    assert found["digital"]["accuracy"] == 1.0 and found["digital"]["sqnr_db"] == 300.0
    rows = found["rows"]["sqnr_db"]
    assert [(row["time"], row["chips"]) for row in rows] == [("20 s", 3), ("1 y", 3)]
    assert 10 < rows[1]["mean"] < rows[0]["mean"] < 40 and 0 < rows[0]["spread"] < 5  # drift takes its part of a chip that works
    again = simulated(network(), "pcm-nandakumar", times=[20.0, 365 * 86400.0], chips=3, data=Data(batches=batches()))
    assert again.qualities[0]["rows"] == found["rows"]
    lines = (tmp_path / "out" / "looks.jsonl").read_text().splitlines()
    (tmp_path / "out" / "looks.jsonl").write_text("\n".join(lines[:4]) + '\n{"chip": 2, "sec')  # killed in the middle of a line
    resumed = told(capsys, "simulate", *options)["run"]
    assert resumed["qualities"][0]["rows"] == found["rows"]
    code, _, err = call(capsys, "analog", "simulate", *options, "--windows", "2")
    assert code == 2 and "a run with another data" in err


def test_a_simulation_says_what_was_chosen_and_what_it_costs(capsys: Any):
    code, out, err = call(capsys, "analog", "simulate", f"{HERE}:normed", "--chip", "rram-milo", "--times", "1h", "--chips", "2")
    assert code == 0, err
    assert "simulate 2/2  chip 1 at 1 h" in err and "simulate" not in out
    assert "- Converters are set and outputs compared on the model's example inputs" in out
    assert "energy of an inference" in out and "digital int8" in out
    run = told(capsys, "simulate", f"{HERE}:normed", "--chip", "ideal", "--times", "1h", "--chips", "1")["run"]
    assert run["costs"] == {} and any("an ideal" in note for note in run["notes"])
    assert run["qualities"][0]["rows"]["sqnr_db"][0]["mean"] > 100  # float32 rounding


def test_a_language_model_is_judged_on_text(tiny_model: Path, tiny_texts: tuple[Path, Path], tmp_path: Path, capsys: Any):
    calibration, held = tiny_texts
    asked = ["--calibration", calibration, "--eval", held, "--windows", "2", "--length", "32", "--times", "1d", "--chips", "2"]
    run = told(capsys, "simulate", tiny_model, "--chip", "pcm-hermes", *asked, "--split", "lm_head", "--out", tmp_path / "out")["run"]
    (found,) = run["qualities"]
    assert found["digital"]["kld"] == 0.0 and found["digital"]["top1"] == 1.0
    assert found["rows"]["kld"][0]["mean"] > 0 and 0 < found["rows"]["top1"][0]["mean"] <= 1
    assert run["digital"]["lm_head"] == "kept digital" and "lm_head" not in [layer["name"] for layer in run["layers"]]
    assert set(run["costs"]) == {"prompt", "token"} and run["context"] == 128
    assert "Judged on 2 windows of 32 tokens of held" in run["notes"][0]


def test_cost_tells_macro_and_chip_apart(tmp_path: Path, capsys: Any):
    run = told(capsys, "cost", *OURS, "pcm-nandakumar", "--split", "2")["run"]
    summary = run["costs"]["inference"]["summary"]
    assert summary["macs"] == 16 * 24 + 24 * 24 + 24 * 4  # of one inference, not of the batch
    assert abs(summary["analog_share"] - 480 / 1056) < 1e-9 and summary["baseline_energy_uj"] > 0
    assert [layer["where"] for layer in run["costs"]["inference"]["layers"]] == ["tiles", "digital", "tiles"]
    code, out, _ = call(capsys, "analog", "cost", *OURS, "pcm-nandakumar", "--out", tmp_path / "out")
    assert code == 0 and "its macros" in out and "fJ/MAC" in out and (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (["RangeSearch"], ""),
        (["Compensation", "--by", "column"], ""),
        (["HPD", "--rank", "4", "--targets", "2"], "HPD divided 2"),
        (["AutoSplit", "--max-loss", "0", "--chips", "1"], "AutoSplit keeps"),
        (["Remap"], "has no faults"),
        (["NORA"], "NORA rescaled 0 norms"),
        (
            ["HardwareAware", "--noise", "Injected(sigma=0.05)", "--train", f"{HERE}:batches", "--steps", "2"],
            "HardwareAware trained 2 steps",
        ),
        (["EST", "--train", f"{HERE}:batches", "--steps", "2"], "EST trained 2 steps"),
        (["BWMA", "--train", f"{HERE}:batches", "--steps", "2"], "BWMA trained 2 steps"),
        (["HaLoRA", "--rank", "2", "--train", f"{HERE}:batches", "--steps", "2"], "HaLoRA trained branches of rank 2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_method_makes_a_before_and_an_after(method: list[str], says: str, capsys: Any):
    model, *rest = OURS
    if method[0] == "AutoSplit":  # its own --chips comes before the command's
        method = [method[0] + "(max_loss=0.0, chips=1)"]
    run = told(capsys, "robust", model, *rest, "pcm-nandakumar", "--times", "1d", "--chips", "1", "--method", *method)["run"]
    assert [found["name"] for found in run["qualities"]] == ["as mapped", "made robust"]
    assert run["methods"][0].startswith(method[0].split("(")[0]) and says in " ".join(run["notes"])
    before, after = (found["rows"]["sqnr_db"][0]["mean"] for found in run["qualities"])
    assert before > 10 and (after > 10 or method[0] == "BWMA")
    assert before != after or method[0] not in ("RangeSearch", "Compensation", "HPD", "BWMA", "HaLoRA")  # the others may leave it as it was
    assert before == after or method[0] not in ("Remap", "NORA")  # no faults, no norms


def test_batch_norms_learn_the_drifted_chip(capsys: Any):
    run = told(capsys, "robust", f"{HERE}:normed", "--chip", "pcm-joshi", "--times", "1y", "--chips", "1", "--method", "BatchNorms")["run"]
    before, after = (found["rows"]["sqnr_db"][0]["mean"] for found in run["qualities"])
    assert before != after


def test_routers_are_corrected_for_every_chip(tmp_path: Path, capsys: Any):
    words = [f"{HERE}:experts", "--chip", "pcm-nandakumar", "--times", "20s,1d", "--chips", "2", "--method", "ROMER", "--starved", "0.5"]
    run = told(capsys, "robust", *words, "--out", tmp_path / "out")["run"]
    before, after = (found["rows"]["sqnr_db"] for found in run["qualities"])
    assert all(a["mean"] != b["mean"] for a, b in zip(before, after, strict=True))
    assert not any("weights" in note for note in run["notes"])  # they are those of before
    again = told(capsys, "robust", *words, "--out", tmp_path / "out")["run"]
    assert again["qualities"] == run["qualities"]
    told(capsys, "methods", "ROMER")
    code, _, err = call(capsys, "analog", "robust", *OURS, "pcm-nandakumar", "--method", "ROMER")
    assert code == 2 and "no router" in err and "Traceback" not in err


def test_the_digital_model_stays_the_reference_of_a_trained_one(tmp_path: Path, capsys: Any):
    """Weights on disk are those that were trained, and quality is measured against what the model was."""
    from safetensors.torch import load_model

    train = ["--train", f"{HERE}:batches", "--method", "EST", "--steps", "5", "--learning-rate", "0.01"]
    options = ["pcm-nandakumar", "--times", "1d", "--chips", "1", *train, "--out", tmp_path / "out"]
    run = told(capsys, "robust", *OURS, *options)["run"]
    trained = network()
    load_model(trained, str(tmp_path / "out" / "weights.safetensors"))
    assert run["qualities"][1]["digital"]["sqnr_db"] == 300.0
    assert any("weights.safetensors" in note for note in run["notes"])


def test_a_directory_of_another_networks_run_is_refused(tmp_path: Path):
    """Models in memory, and files that were overwritten, have one name."""
    from lessen.analog.robust.bwma import BWMA
    from lessen.analog.robust.case import Training
    from lessen.analog.run.hardening import hardened
    from lessen.analog.run.job import simulated
    from lessen.analog.run.subject import Data
    from lessen.errors import UsageError

    data, looks = list(batches()), {"times": [20.0], "chips": 1}
    other = network()
    with torch.no_grad():
        other[0].weight.neg_()
    first = simulated(network(), "pcm-nandakumar", data=Data(batches=data), out=tmp_path / "s", **looks)
    again = simulated(network(), "pcm-nandakumar", data=Data(batches=data), out=tmp_path / "s", **looks)
    assert first.qualities == again.qualities
    with pytest.raises(UsageError, match=r"a run with another network.*choose another --out"):
        simulated(other, "pcm-nandakumar", data=Data(batches=data), out=tmp_path / "s", **looks)
    with pytest.raises(UsageError, match="a run with another evaluation"):
        simulated(network(), "pcm-nandakumar", data=Data(batches=[*data[:4], *data[2:6]]), out=tmp_path / "s", **looks)

    def robust(steps: int, model: Any, out: Path) -> Any:
        how = Training(data=data, steps=steps, learning_rate=0.01)
        return hardened(model, "pcm-nandakumar", [BWMA()], data=Data(batches=data), training=how, out=out, **looks)

    robust(2, network(), tmp_path / "r")
    with pytest.raises(UsageError, match="a run with another network"):
        robust(2, other, tmp_path / "r")
    robust(4, network(), tmp_path / "t")  # as if minutes had ended training elsewhere: its rows are of a network that is no more
    (tmp_path / "r" / "after.jsonl").write_text((tmp_path / "t" / "after.jsonl").read_text())
    fresh = robust(2, network(), tmp_path / "u")
    assert robust(2, network(), tmp_path / "r").qualities[1]["rows"] == fresh.qualities[1]["rows"]


def test_a_search_keeps_what_it_found(tmp_path: Path, capsys: Any):
    options = [*OURS, "pcm-nandakumar", "--vary", "adc.bits=4,8", "array=16,32x64", "--trials", "3", "--chips", "1", "--at", "1d"]
    first = told(capsys, "explore", *options, "--out", tmp_path / "out")["run"]["exploration"]
    assert len(first["designs"]) == 3 and first["front"] and set(first["designs"][0]["choices"]) == {"adc.bits", "array"}
    options[options.index("--trials") + 1] = "4"
    second = told(capsys, "explore", *options, "--out", tmp_path / "out")["run"]["exploration"]
    assert second["designs"][:3] == first["designs"] and len(second["designs"]) == 4
    file = tmp_path / "space.toml"
    file.write_text('[space]\n"adc.bits" = [4]\nencoding = ["Offset", "Sliced(bits=4, cell_bits=1)"]\ndevice = ["rram-milo"]\n')
    code, out, err = call(capsys, "analog", "explore", *OURS, "pcm-nandakumar", "--space", file, "--trials", "2", "--chips", "1")
    assert code == 0 and "The Pareto front" in out, err


def test_two_processes_search_together(tmp_path: Path, capsys: Any):
    options = ["--vary", "adc.bits=4,6", "--trials", "2", "--workers", "2", "--chips", "1", "--storage", tmp_path / "s.log"]
    assert len(told(capsys, "explore", *OURS, "pcm-nandakumar", *options)["run"]["exploration"]["designs"]) == 2


SIMULATE = ["simulate", *OURS]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (["describe", "pcm-hermse"], "did you mean pcm-hermes?"),
        (["describe", "nowhere.toml"], "no such file"),
        (["describe", "NOTTOML"], "wanted TOML"),
        (["describe", "ZEROBITS"], "2 to 20 bits with the sign"),
        (["describe", "NARROW"], "0 <= g_min < g_max"),
        ([*SIMULATE, "pcm-hermes", "--times", "20s"], "its description begins there"),
        ([*SIMULATE, "pcm-hermes", "--times", "soon"], "a number and a unit"),
        ([*SIMULATE, "pcm-hermes", "--chips", "0"], "wanted at least one"),
        ([*SIMULATE, "pcm-nandakumar", "--split", "9*"], "wanted a module of the model"),
        ([*SIMULATE, "SMALL"], "wanted at most the 1 of chip unnamed"),
        ([*SIMULATE, "pcm-nandakumar", "--evaluate", "loudness"], "package.module:function"),
        ([*SIMULATE, "pcm-nandakumar", "--evaluate", f"{HERE}:loudnes"], "no loudnes in"),
        ([*SIMULATE, "pcm-nandakumar", "--calibration", "builtin"], "a model that writes text"),
        ([*SIMULATE, "pcm-nandakumar", "--windows", "0"], "at least 1 window"),
        (["simulate", f"{HERE}:network", "--chip", "ideal"], "no example to run it on"),
        (["cost", *OURS, "ideal"], "an ideal"),
        (["cost", *OURS, "pcm-nandakumar", "--context", "0"], "at least one token"),
        (["robust", *OURS, "pcm-nandakumar", "--method", "HDP"], "did you mean HPD?"),
        (["robust", *OURS, "pcm-nandakumar", "--method", "HPD", "--rang", "3"], "did you mean rank?"),
        (["robust", *OURS, "pcm-nandakumar", "--method", "EST"], "no data"),
        (["robust", *OURS, "pcm-nandakumar"], "--method"),
        (["methods", "HDP"], "did you mean HPD?"),
        (["explore", *OURS, "pcm-nandakumar"], "neither --space nor --vary"),
        (["explore", *OURS, "pcm-nandakumar", "--vary", "adc.bit=4"], "did you mean bits?"),
        (["explore", *OURS, "pcm-nandakumar", "--vary", "adc.bits=many"], "wanted an integer or none"),
        (["explore", *OURS, "pcm-nandakumar", "--vary", "encoding=Offst"], "did you mean Offset?"),
        (["explore", *OURS, "pcm-nandakumar", "--space", "nowhere.toml"], "a space in TOML"),
        (["simulat"], "simulate"),
    ],
    ids=str,
)
def test_a_wrong_request_is_one_line(tokens: list[str], says: str, tmp_path: Path, capsys: Any):
    files = {
        "NOTTOML": "this is no TOML",
        "ZEROBITS": "[adc]\nbits = 0\n",
        "NARROW": '[device]\nkind = "PCM"\ng_max = -1.0\n',
        "SMALL": "[array]\nrows = 4\ncolumns = 4\n[system]\ntiles = 1\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    words = [str(tmp_path / f"{token}.toml") if token in files else token for token in tokens]
    code, out, err = call(capsys, "analog", *words, "--quiet")
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith("lessen: ") and says in err and "Traceback" not in err


JUDGED: list[type] = []


def counting(model: nn.Module) -> float:
    """Which kinds of layers were judged: that of the digital model, or that of tiles."""
    JUDGED.append(type(next(m for m in model.modules() if isinstance(m, nn.Linear))))
    return 1.0


def far_too_wide() -> list[Tensor]:
    return [torch.ones(8, 17)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["EST"], "no data"),
        (["HaLoRA"], "no data"),
        (["RangeSearch", "--method", "HardwareAware"], "no data"),
        (["EST", "--train", f"{HERE}:far_too_wide"], "a sample that the model cannot read: RuntimeError"),
        (["EST(times=Programmed(first=1.0))", "--train", f"{HERE}:batches"], "its description begins there"),
        (["HaLoRA", "--targets", "nothing", "--train", f"{HERE}:batches"], "wanted linear layers"),
        (["ROMER"], "no router"),
        (["BatchNorms"], "no batch norm"),
        (["HPD"], "no block with an output projection"),
        (["HPD", "--rank", "24", "--targets", "2"], "a rank with which 2 multiplies as much digitally"),
        (["HPD(rank=4, targets=['2'])", "--method", "HPD(rank=4, targets=['2'])"], "wanted names or patterns of linear layers"),
        (["AutoSplit", "--seconds", "1"], "its description begins there"),
    ],
    ids=str,
)
def test_what_a_method_cannot_do_is_known_before_anything_is_simulated(words: list[str], says: str, capsys: Any):
    JUDGED.clear()
    asked = [*OURS, "pcm-nandakumar", "--evaluate", f"{HERE}:counting", "--chips", "1", "--method", *words]
    code, out, err = call(capsys, "analog", "robust", *asked, "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err
    assert tuple(JUDGED) == (nn.Linear,)  # the digital model, once, for the names of its numbers; no network on a chip


def test_a_method_after_one_that_divides_is_checked_on_what_is_left(capsys: Any):
    """`2.base` is there only once `2` is divided; training data that can be read only once serves both methods."""
    from lessen.analog.robust.case import Training
    from lessen.analog.run.hardening import hardened
    from lessen.analog.run.subject import Data

    methods = ["HPD(rank=2, targets=['2'])", "HPD(rank=2, targets=['2.base'])", "HaLoRA(rank=2)", "EST"]
    how, data = Training(data=batches(), steps=1), Data(batches=list(batches()))
    run = hardened(network(), "pcm-nandakumar", methods, times=[20.0], chips=1, data=data, training=how)
    assert [note.split(":")[0] for note in run.notes if note.startswith("HPD")] == ["HPD divided 2", "HPD divided 2.base"]
    assert any(note.startswith("EST trained 1 steps") for note in run.notes)


def test_a_chip_on_which_a_method_does_not_work_is_refused_at_once(tmp_path: Path, capsys: Any):
    chip = tmp_path / "chip.toml"
    chip.write_text('[dac]\nbits = 8\n[adc]\nbits = 8\n[wires]\nohm = 1.0\nmodel = "iterative"\n[faults]\nlow = 0.1\n')
    for words, says in ((["Remap"], "wires that are solved when programmed"), (["HardwareAware", "--train", f"{HERE}:batches"], "wires")):
        JUDGED.clear()
        asked = [*OURS, chip, "--evaluate", f"{HERE}:counting", "--chips", "1", "--method", *words]
        code, out, err = call(capsys, "analog", "robust", *asked, "--quiet")
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err and tuple(JUDGED) == (nn.Linear,), err


def test_a_judge_of_ones_own(capsys: Any):
    asked = ["--evaluate", f"{HERE}:loudness", "--times", "1d", "--chips", "1"]
    run = told(capsys, "simulate", *OURS, "pcm-nandakumar", *asked)["run"]
    assert run["metrics"][0]["name"] == "loudness" and run["qualities"][0]["digital"]["loudness"] > 0
    code, _, err = call(capsys, "analog", "simulate", *OURS, "pcm-nandakumar", "--evaluate", f"{HERE}:broken", "--quiet")
    assert code == 1 and "no idea" in err and err.count("\n") == 1


def test_a_judge_that_gives_no_number_is_told_of(capsys: Any, tmp_path: Path):
    SEEN.clear()
    asked = ["--evaluate", f"{HERE}:sometimes", "--times", "20s,1d", "--chips", "2", "--out", tmp_path / "out"]
    run = told(capsys, "simulate", *OURS, "pcm-nandakumar", *asked)["run"]
    assert any("odd, as mapped, is no finite number in 2 of 4 looks (chip 0 at 20 s is nan)" in note for note in run["notes"]), run["notes"]
    assert {row["mean"] for row in run["qualities"][0]["rows"]["odd"]} == {None}
    SEEN.clear()
    code, out, err = call(capsys, "analog", "simulate", *OURS, "pcm-nandakumar", *asked[:2], "--times", "20s", "--chips", "3", "--quiet")
    assert code == 0 and "no finite number" in out + err


def test_a_head_that_is_the_token_table_is_priced_where_it_lies(tmp_path: Path):
    pytest.importorskip("transformers")
    from lessen.analog.run.job import priced
    from tests.models_fixture import tiny

    run = priced(tiny("llama", tie_word_embeddings=True), "pcm-nandakumar", context=4)
    where = {layer["name"]: layer["where"] for layer in run.costs["token"]["layers"]}
    assert where["lm_head"] == "tiles" and "model.embed_tokens" not in where
    assert any("shares its weights" in note for note in run.notes)
    kept = priced(tiny("llama", tie_word_embeddings=True), "pcm-nandakumar", split=["lm_head"], context=4)
    assert {layer["name"]: layer["where"] for layer in kept.costs["token"]["layers"]}["lm_head"] == "digital"


def test_what_the_page_about_analog_chips_shows_is_accepted(tmp_path: Path):
    import re

    from lessen.analog import chipfile
    from lessen.analog.robust.applied import METHODS
    from lessen.analog.search import space

    page = (Path(__file__).parents[1] / "docs" / "analog.md").read_text()
    chip, varied = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    base = chipfile.loads(chip)
    (tmp_path / "space.toml").write_text(varied)
    found = space.load(tmp_path / "space.toml", base)
    assert set(found) == {"adc.bits", "array", "encoding", "device.g_max"}
    assert re.findall(r"^\| `(\w+)` \| (yes|) ?\| (.*) \|$", page, re.MULTILINE) == [
        (m.name, "yes" if m.trains else "", m.summary) for m in METHODS
    ]


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_a_split_is_found_without_labels_and_may_be_all_digital(limit: float, capsys: Any):
    method = f"AutoSplit(max_loss={limit}, chips=1)"
    run = told(capsys, "robust", f"{HERE}:normed", "--chip", "pcm-nandakumar", "--times", "1d", "--chips", "1", "--method", method)["run"]
    notes = " ".join(run["notes"])
    assert "errors of the outputs in parts of them" in notes
    after = run["qualities"][1]["rows"]["sqnr_db"][0]["mean"]
    assert (not run["layers"] and after == 300.0) if limit == 0 else (len(run["layers"]) == 2 and after < 100)


@pytest.mark.parametrize(
    ("tokens", "code", "says"),
    [
        (["--vary", "adc.bits=5,6", "--vary", "adc.bits=7,8"], 2, "got the field twice"),
        (["--vary", "adc.bits=5,6", "--at", "1s"], 2, "its description begins there"),
        (["--vary", "adc.bits=1", "--chips", "1"], 1, "no design of 1 that could be judged"),
    ],
    ids=["twice", "early", "refused"],
)
def test_searches_that_can_find_nothing_are_refused(tokens: list[str], code: int, says: str, capsys: Any):
    found, out, err = call(capsys, "analog", "explore", *OURS, "pcm-nandakumar", *tokens, "--quiet")
    assert (found, out, err.count("\n")) == (code, "", 1) and says in err, err


def test_weights_that_binary_training_leaves_are_told_of(capsys: Any):
    train = ["--method", "BWMA", "--train", f"{HERE}:batches", "--steps", "1", "--learning-rate", "1e-12"]
    run = told(capsys, "robust", *OURS, "pcm-nandakumar", "--times", "1d", "--chips", "1", *train)["run"]
    notes = " ".join(run["notes"])
    assert "no state was better" not in notes or "as BWMA leaves them" in notes
    assert "weights are as before" not in notes


def test_what_runs_without_its_layer_is_priced_where_it_runs():
    """Mamba's convolution and step sizes are multiplied outside their layers, so they cannot lie on tiles, whatever a split says."""
    transformers = pytest.importorskip("transformers")
    from lessen.analog.run.job import priced

    model = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)).eval()
    run = priced(model, "pcm-nandakumar", context=4)
    where = {layer["name"].rpartition(".")[2]: layer["where"] for layer in run.costs["prompt"]["layers"]}
    assert where["in_proj"] == where["out_proj"] == "tiles"
    assert where.get("conv1d", "digital") == where.get("dt_proj", "digital") == "digital"
    assert {name.rpartition(".")[2] for name in run.digital} >= {"conv1d", "dt_proj"}


def test_a_divided_network_is_priced_beside_the_network_as_it_was():
    from lessen.analog.run.hardening import hardened
    from lessen.analog.run.job import priced
    from lessen.analog.run.subject import Data

    model, given = network(), list(batches())
    plain = priced(model, "pcm-nandakumar", batches=given).costs["inference"]["summary"]
    run = hardened(model, "pcm-nandakumar", ["HPD(rank=2, targets=['2'])"], chips=1, times=[20.0], data=Data(batches=given))
    found = run.costs["inference"]["summary"]
    assert found["macs"] > plain["macs"]
    for key in ("baseline_energy_uj", "baseline_latency_us", "baseline_area_mm2", "baseline_tops_per_watt"):
        assert found[key] == pytest.approx(plain[key])


def test_a_judge_for_choices_needs_one_for_the_record(capsys: Any):
    code, out, err = call(capsys, "analog", "simulate", *OURS, "pcm-nandakumar", "--choose", f"{HERE}:loudness", "--quiet")
    assert (code, out) == (2, "") and "--choose: got a judge for choices alone, wanted --evaluate with it" in err
