"""Quality over time: rows do not depend on how they came about, and a killed run goes on."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.devices.pcm import PCM
from lessen.analog.mapping import map
from lessen.analog.periphery import Adc, Dac
from lessen.analog.simulation import parse_time, simulate, standard_times
from lessen.core.event import Event
from lessen.errors import LessenError, UsageError


def case() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), torch.randn(40, 20)


def test_quality_falls_with_time_and_spreads_over_chips():
    model, x = case()
    reference = model(x).detach()
    found = simulate(
        map(model, Chip(device=PCM())), lambda m: -float((m(x) - reference).square().mean()), digital=model, times=(20.0, 86400.0), chips=4
    )
    assert found.digital == {"quality": 0.0}
    early, late = found.summary()
    assert early["chips"] == 4 and early["spread"] > 0 and early["least"] < early["mean"] < early["most"] < 0
    assert late["mean"] < early["mean"]


def test_a_killed_run_goes_on_to_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, x = case()
    mapped, file = map(model, Chip(device=PCM())), tmp_path / "rows.jsonl"

    def judge(m: nn.Module) -> dict[str, float]:
        print("called")
        return {"first": float(m(x)[0, 0])}

    whole = simulate(mapped, judge, times=(20.0, 3600.0), chips=3)

    def stop(event: Event) -> None:
        if event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(mapped, judge, times=(20.0, 3600.0), chips=3, file=file, on_event=stop)
    with file.open("a") as lines:
        lines.write('{"chip": 2, "sec')  # killed while writing
    capsys.readouterr()
    resumed = simulate(mapped, judge, times=(20.0, 3600.0), chips=3, file=file)
    assert [(look.chip, look.seconds, look.values) for look in resumed.looks] == [(k.chip, k.seconds, k.values) for k in whole.looks]
    assert capsys.readouterr().out.count("called") == 2
    other = map(model, Chip(device=PCM(g_max=20.0)))
    with pytest.raises(UsageError, match=r"rows of another chip.*another file="):
        simulate(other, judge, file=file)


def test_rows_of_other_weights_ranges_judges_and_adaptations_are_refused(tmp_path: Path):
    model, x = case()
    chip, given = Chip(device=PCM(), dac=Dac(8)), {"times": (20.0,), "chips": 1, "file": tmp_path / "rows.jsonl"}

    def judge(m: nn.Module) -> float:
        return float(m(x)[0, 0])

    first = simulate(map(model, chip, calibration=[x]), judge, digital=model, **given)
    assert simulate(map(model, chip, calibration=[x]).program(7), judge, digital=model, **given) == first  # whatever was programmed
    with pytest.raises(UsageError, match="rows of another network"):
        simulate(map(model, chip, calibration=[2 * x]), judge, **given)
    with pytest.raises(UsageError, match="rows of another evaluation"):
        simulate(map(model, chip, calibration=[x]), lambda m: judge(m), **given)
    with pytest.raises(UsageError, match="rows of another network and adaptation"):
        simulate(map(model, chip, calibration=[x]), judge, adapt=lambda m: None, **given)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].bias.add_(1.0)  # pyright: ignore[reportIndexIssue]
    assert simulate(map(model, chip, calibration=[x]), judge, digital=other, **given).digital != first.digital
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3  # pyright: ignore[reportIndexIssue]
    with pytest.raises(UsageError, match="rows of another network"):
        simulate(map(model, chip, calibration=[x]), judge, **given)


def test_adapting_happens_before_the_look():
    model, _ = case()
    order: list[str] = []
    simulate(map(model, Chip()), lambda m: order.append("look") or 0.0, chips=1, times=(0.0,), adapt=lambda m: order.append("adapt"))
    assert order == ["adapt", "look"]


def test_times_begin_with_the_device():
    model, _ = case()
    assert standard_times(map(model, Chip(device=PCM()))) == [20.0, 3600.0, 86400.0, 2592000.0, 31536000.0]
    with pytest.raises(UsageError, match="time of PCM"):
        simulate(map(model, Chip(device=PCM())), lambda m: 0.0, times=(1.0,))
    with pytest.raises(UsageError, match="time: got '3 moons'"):
        parse_time("3 moons")


@pytest.mark.parametrize(("value", "mean"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_values_that_are_not_finite_are_told(value: float, mean: str):
    model, _ = case()
    given = iter([1.0, value, 2.0, 3.0])
    found = simulate(map(model, Chip(device=PCM())), lambda m: next(given), times=(20.0, 3600.0), chips=(1, 2))
    late = found.summary()[1]
    assert str(late["mean"]) == mean and math.isnan(late["spread"])
    early = found.summary()[0]
    assert (early["mean"], early["least"]) == (1.5, 1.0)


def test_calibration_and_weights_that_are_not_finite_are_refused():
    model, x = case()
    x[3, 3] = math.nan
    for chip in (Chip(dac=Dac(8)), Chip(dac=Dac(8, range="dynamic"), adc=Adc(8))):
        with pytest.raises(LessenError, match="calibration of 0: got inputs that are not finite"):
            map(model, chip, calibration=[x])
