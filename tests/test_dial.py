"""The one wish, a size: it is held against the files that will be written, not against what a format costs on paper."""

import re

import pytest
import torch

from lessen import open_checkpoint
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
            methods, _ = dials.solve(source, wish, price)
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
