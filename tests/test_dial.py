"""The one wish, a size: it is held against the files that will be written, not against what a format costs on paper."""

import re

import pytest
import torch

from lessen import open_checkpoint
from lessen.compress import compress
from lessen.engine import dial as dials
from lessen.engine.quantize import candidates
from lessen.errors import UsageError
from lessen.export import export
from lessen.export.price import PRICES, Layout, containers, contents, pricing
from lessen.job import Request, plan, settled
from lessen.recipe import Dial, parse
from tests.export_fixture import byte_tokenizer, llama

ALL = ("gguf", "onnx", "gptq")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Rows of 64 and 128, a tied table: as in a small model, the table is a large part."""
    folder = tmp_path_factory.mktemp("dial") / "model"
    llama(tied=True, intermediate_size=128).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    byte_tokenizer(384).save_pretrained(folder)
    return folder


def chosen(model, to, **request):
    """(bits, group, table bits) of the recipe for a wish."""
    methods = settled(model, Request(to=to, **request)).methods
    linear = candidates(methods[-1])[0]
    return linear.bits, linear.group, methods[0].bits if len(methods) > 1 else None


@pytest.mark.parametrize("to", ["0.3x", "0.32x", "0.4x", "10bpw", "12bpw"])
def test_grids_are_such_as_every_container_holds(model, to):
    bits, group, _ = chosen(model, to)
    assert group in (32, 64)
    assert bits in (2, 3, 4, 5, 6, 8)


def test_nothing_is_paid_for_bits_that_no_file_saves(model):
    source = open_checkpoint(model)
    price = pricing(source, None)
    for to in range(60, 130):
        wish = Dial("bytes", to * 1e3)
        try:
            methods = dials.solve(source, wish, price).methods
        except UsageError:
            continue
        table, linear = methods[0], candidates(methods[-1])[0]
        mine = Layout(linear.bits, linear.group, table.bits, table.group)
        assert max(price(mine).values()) <= wish.value
        for better in ((8, 32), (6, 32), (5, 32), (4, 32), (3, 32)):
            if better[0] > linear.bits:  # more bits would have made some file larger than the wish
                assert max(price(Layout(*better, table.bits, table.group)).values()) > wish.value


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_price_is_the_size_of_the_file(model, tmp_path, bits):
    methods = parse([f"RTN(bits={bits}, group=32, scale='mse')", "RTN(bits=8, group=32, scale='mse', on='embeddings')"])
    made = plan(model, recipe=methods).result
    weights = {"huggingface": "*.safetensors", "onnx": "*.data", "gptq": "*.safetensors"}
    for name, price in PRICES.items():
        target = tmp_path / name
        export(made, target, name)
        size = sum(file.stat().st_size for file in (target.glob(weights[name]) if name in weights else [target]))
        expected = price(contents(open_checkpoint(model)), Layout(bits, 32, 8, 32))
        # Headers, names and alignment come to at most 24 kB in a file of this model's 30 tensors; a width or a group read
        # wrongly would show in the difference between the cases, which the next test compares without them.
        assert 0 <= size - expected + 4096 <= 28_000, name


def test_prices_differ_as_files_do(model, tmp_path):
    sizes = {}
    for bits in (3, 4, 8):
        made = plan(model, recipe=parse([f"RTN(bits={bits}, group=32, scale='mse')"]), embeddings=False).result
        export(made, tmp_path / f"{bits}.gguf", "gguf")
        sizes[bits] = (tmp_path / f"{bits}.gguf").stat().st_size
    priced = {bits: pricing(open_checkpoint(model), ["gguf"])(Layout(bits, 32, 16, None))["gguf"] for bits in sizes}
    assert sizes[3] == sizes[4] and priced[3] == priced[4]
    assert sizes[8] - sizes[4] == pytest.approx(priced[8] - priced[4], abs=64)  # the alignment of single tensors


def test_a_wish_below_the_containers_is_refused_with_the_least_that_is_enough(model):
    with pytest.raises(UsageError, match=r"below which gguf weights of this model do not come.*--export none reaches") as refused:
        settled(model, Request(to="1kB", exports=("gguf",)))
    least = re.search(r"at least ([\d.]+kB)", str(refused.value))
    alone = re.search(r"--export none reaches ([\d.]+kB)", str(refused.value))
    assert least and alone
    assert chosen(model, least[1], exports=("gguf",))[2] is not None
    assert chosen(model, alone[1], exports=())[0] == 2
    with pytest.raises(UsageError):
        settled(model, Request(to=alone[1], exports=("gguf",)))


def test_a_usual_container_that_cannot_meet_a_wish_is_left_out_aloud_and_a_named_one_insists(model, tmp_path):
    below = f"{float(_least(model, 'gguf')[:-2]) - 2}kB"
    found = settled(model, Request(to=below))
    assert "gguf" in found.left_out
    assert any(re.match(r"gguf is left out: its weights take [\d.]+kB at the least", note) for note in found.notes)
    with pytest.raises(UsageError, match="below which gguf weights"):
        settled(model, Request(to=below, exports=("gguf", "onnx")))
    compress(model, tmp_path / "out", to=below, evaluate=False, prove=False, calibration=torch.randint(0, 384, (6, 32)), written=0)
    assert not (tmp_path / "out" / "gguf").exists()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= float(below[:-2]) * 1e3 + 28_000  # headers, as above


def test_no_container_is_worth_two_bits(model):
    """GGUF spends 4.5 bits on 2, ONNX 2.5: where the directory alone has room for a third, it is taken."""
    source = open_checkpoint(model)
    for to in range(50, 130):
        try:
            choice = dials.solve(source, Dial("bytes", to * 1e3), pricing(source, None), ("gguf", "onnx"))
        except UsageError:
            continue
        if candidates(choice.methods[-1])[0].bits == 2:
            assert any(note.startswith("2 bits without training spoil most models") for note in choice.notes)
            with pytest.raises(UsageError):
                dials.solve(source, Dial("bytes", to * 1e3), _three_bits(source))
        else:
            assert not any("spoil" in note for note in choice.notes)


def _least(model, *exports):
    """The least size that is enough, in the words of the refusal."""
    with pytest.raises(UsageError) as refused:
        settled(model, Request(to="1kB", exports=exports))
    found = re.search(r"at least ([\d.]+kB)", str(refused.value))
    assert found
    return found[1]


def _three_bits(source):
    """The directory's prices, two bits left out."""
    price = pricing(source, ())
    return lambda layout: {"huggingface": float("inf")} if layout[0] == 2 else price(layout)


def test_groups_that_only_transformers_reads_are_a_last_resort(tmp_path):
    torch.manual_seed(0)
    llama(hidden_size=192, intermediate_size=384, tied=True).save_pretrained(tmp_path / "model")  # pyright: ignore[reportCallIssue]
    held = {chosen(tmp_path / "model", f"{to}kB", exports=())[1] for to in (700, 500, 460)}
    assert held <= {32, 64}
    assert chosen(tmp_path / "model", _least_of_three(tmp_path / "model"), exports=())[:2] == (3, None)


def _least_of_three(model):
    """Where three bits begin, in the words of the note."""
    notes = settled(model, Request(to=_least(model), exports=())).notes
    return next(found[1] for note in notes if (found := re.search(r"begin at --to ([\d.]+kB)", note)))


def test_tables_that_stay_as_they_are_are_counted_so(model):
    with_table = chosen(model, "120kB")
    assert with_table[2] == 8
    with pytest.raises(UsageError, match="at least"):
        settled(model, Request(to="70kB", embeddings=False))
    assert chosen(model, "0.9x", embeddings=False)[2] is None


def test_rows_that_groups_do_not_divide_fall_back(tmp_path):
    torch.manual_seed(0)
    llama(hidden_size=48, intermediate_size=80).save_pretrained(tmp_path / "odd")  # pyright: ignore[reportCallIssue]
    assert chosen(tmp_path / "odd", "0.5x")[1] == 16


def test_containers_are_those_that_know_the_architecture(model):
    source = open_checkpoint(model)
    assert containers(source, None) == ("huggingface", "gguf", "onnx")
    assert containers(source, ()) == ("huggingface",)
    assert containers(source, ALL) == ("huggingface", *ALL)


def test_no_wish_means_the_recipe_of_the_benchmarks(model):
    methods, _ = dials.default(open_checkpoint(model))
    assert methods == [*parse(["RTN(bits=8, group=32, scale='mse', on='embeddings')"]), dials.candidates(4, 32)]
