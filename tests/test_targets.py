"""What running costs: multiplications against PyTorch's own counter, wishes in words, and latency tables with times made up."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import lessen
from lessen.errors import UsageError
from lessen.methods import Magnitude
from lessen.models.module import InMemory
from lessen.structure.decoder import units as decoder_units
from lessen.targets import latency
from lessen.targets.latency import Latency, Table
from lessen.targets.profile import macs, profile
from lessen.targets.wish import Wish
from tests.decoders import decoder, tokens


class Net(nn.Module):
    """Every kind of product that has a weight: strided, depthwise and transposed convolutions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 24, 1)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.wide(self.depth(F.relu(self.stem(x)))))))
        return self.head(x.mean((2, 3)))


X = torch.ones(2, 3, 16, 16)
PRUNE = import_module("lessen.prune")  # the module: the public name is the function


def test_multiplications_agree_with_torchs_counter():
    torch.manual_seed(0)
    model = Net().eval()
    llama = decoder("llama", torch.float32)
    for module, run in ((model, lambda: model(X)), (llama, lambda: llama(tokens(2, 12)))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        assert macs(module, run, ()).whole == counter.get_total_flops() / 2
    weights = {use.weight for use in profile(model, lambda: model(X))}
    assert weights == {"stem.weight", "depth.weight", "wide.weight", "up.weight", "head.weight"}


def test_predicted_multiplications_are_those_of_the_smaller_model():
    torch.manual_seed(0)
    model = Net().eval()
    pruned = lessen.prune(model, X, method=Magnitude(across="model"), to="50% macs")
    small = pruned.model
    assert pruned.after["macs"] == macs(small, lambda: small(X), ()).whole
    assert abs(pruned.after["macs"] / pruned.before["macs"] - 0.5) < 0.05  # one channel of `wide` is three hundredths
    llama = decoder("llama", torch.float32)
    units = [u for u in decoder_units(InMemory(llama)) if u.kind in ("ffn", "kv_group")]
    whole = macs(llama, lambda: llama(tokens(2, 12)), units)
    made = lessen.prune(llama, tokens(2, 12), method=Magnitude(across="model", unit="all"), to="40% macs", units=units, prove=False)
    widths = [len(made.kept[u.name]) if u.name in made.kept else u.size for u in units]
    assert min(widths) >= 1 and widths != [u.size for u in units]
    assert whole.at(widths) == macs(made.model, lambda: made.model(tokens(2, 12)), ()).whole


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("20%", Wish("parameters", 0.8, True)),
        ("0.8x", Wish("parameters", 0.8, True)),
        ("30% macs", Wish("macs", 0.7, True)),
        ("0.5x of latency", Wish("milliseconds", 0.5, True)),
        ("30MB", Wish("bytes", 30e6, False)),
        ("1.5MiB", Wish("bytes", 1.5 * 2**20, False)),
        ("1.2GMACs", Wish("macs", 1.2e9, False)),
        ("2.5M params", Wish("parameters", 2.5e6, False)),
        ("12 ms", Wish("milliseconds", 12.0, False)),
    ],
)
def test_wishes_in_words(text: str, wish: Wish):
    found = Wish.parse(text)
    assert (found.counted, found.relative) == (wish.counted, wish.relative) and found.left == pytest.approx(wish.left)


@pytest.mark.parametrize("text", ["", "20", "100%", "1.5x", "0x", "12 minutes", "-3MB", "20% joy", "5 latency"])
def test_wishes_that_mean_nothing(text: str):
    with pytest.raises(UsageError, match=r"a share that (goes|stays)|less than 100%"):
        Wish.parse(text)


def by_work(run: Any, *_: Any, **__: Any) -> float:
    """A machine on which a millisecond is a million multiplications, and every call costs a twentieth of one."""
    seen = profile(nn.Module(), run)
    return sum(use.macs for use in seen) / 1e6 + 0.05 * len(seen)


def test_a_table_of_products_predicts_the_whole_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(latency, "measured", by_work)
    torch.manual_seed(0)
    model = Net().eval()
    units = lessen.trace(model, X).units
    table = Table(torch.device("cpu"), torch.float32, tmp_path)
    cost = Latency(model, lambda: model(X), units, table)
    assert cost.whole == pytest.approx(by_work(lambda: model(X)))
    sizes = [unit.size for unit in units]
    for place, unit in enumerate(units):
        # On this machine time is bilinear in the widths, so that interpolation is exact where whole channels were measured.
        half = [size // 2 if i == place else size for i, size in enumerate(sizes)]
        assert cost.saving(sizes, place, unit.size // 2) == pytest.approx(cost.whole - cost.at(half))
        assert 0 < cost.at(half) < cost.whole
    kept = json.loads(table.path.read_text())
    assert "threads" in kept["machine"] and len(kept["milliseconds"]) == len(table.times)
    monkeypatch.setattr(latency, "measured", lambda *_, **__: pytest.fail("measured what is in the table"))
    again = Table(torch.device("cpu"), torch.float32, tmp_path)
    assert all(again.milliseconds(*_key(key)) == value for key, value in table.times.items())


def _key(text: str) -> tuple[Any, ...]:
    op, shapes, settings = json.loads(text)
    fixed = tuple(tuple(s) if isinstance(s, list) else s for s in settings)
    return op, tuple(tuple(shape) for shape in shapes), fixed


def test_tables_of_other_machines_are_other_files(tmp_path: Path):
    first, second = (Table(torch.device("cpu"), dtype, tmp_path) for dtype in (torch.float32, torch.bfloat16))
    assert first.path != second.path and first.path.parent == tmp_path


def test_a_latency_budget_is_met_on_a_machine_that_keeps_its_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "measured", by_work)
    monkeypatch.setattr(PRUNE, "measured", by_work)
    torch.manual_seed(0)
    model = Net().eval()
    whole = by_work(lambda: model(X))
    pruned = lessen.prune(model, X, method=Magnitude(across="model"), to=f"{0.6 * whole:.3f}ms")
    assert pruned.after["milliseconds"] <= 0.62 * whole  # two hundredths of tolerance for a measurement
    assert all(len(k) % 8 == 0 for k in pruned.kept.values()) and "multiples of 8" in pruned.notes[0]
    assert (tmp_path / "lessen").is_dir()
    with pytest.raises(UsageError, match="milliseconds: got"):
        lessen.prune(model, X, method=Magnitude(across="model"), to=f"{0.05 * whole:.3f}ms")


def test_a_smaller_model_that_is_not_faster_is_called_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("lessen.worth"), "measured", lambda *_, **__: 1.0)
    pruned = lessen.prune(Net().eval(), X, method=Magnitude(), to="20%")
    took = "a forward took 1 ms (1 to 1), before 1 ms (1 to 1);"
    assert len(pruned.notes) == 1 and pruned.notes[0].startswith(f"The smaller model is not faster here: {took}")
