"""What can be known to be wrong is told before any work, with where, got, wanted, remedy; in Python as on the command line."""

import shutil
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch

import lessen
from lessen import foresee, job
from lessen.cli.main import run
from lessen.errors import LessenError, UsageError
from lessen.methods import AWQ, FLAP, GPTQ, RTN, BlockInfluence, Select, Wanda
from tests.models_fixture import save, tiny

W8 = [RTN(8, 32, symmetric=False, scale="absmax")]


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Reading text, the first thing that takes time, is a failure here."""

    def begun(*_, **__):
        pytest.fail("work has begun")

    monkeypatch.setattr(job, "prepare", begun)


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({"recipe": W8, "exports": []}, "asymmetric 8-bit codes"),
        ({"recipe": [RTN(4, 16)], "exports": ["gguf"]}, "wanted a multiple of 32; quantize with group=32, which divides its rows of 64"),
        ({"recipe": [RTN(4, 8)], "exports": ["onnx"]}, "wanted a multiple of 16 for ONNX Runtime"),
        ({"recipe": [Select((GPTQ(4, 16), GPTQ(3, 16)))], "exports": ["gguf"]}, "wanted a multiple of 32"),
        ({"exports": ["ggfu"]}, "did you mean gguf?"),
        ({"exports": ["huggingface"]}, "always written"),
        ({"exports": ["gguf", "gguf"]}, "each format once"),
        ({"to": "0.01x"}, "wanted at least"),
        ({"to": "4 potatoes"}, "a size \\(70MB\\)"),
        ({"tokens": 0}, "a positive number of calibration tokens"),
        ({"seed": -1}, "a whole number from 0"),
        ({"written": 2}, "a share from 0 to 1"),
        ({"threads": 4096}, "the processors this process may use"),
        ({"evaluation": ["nowhere.txt"]}, "nowhere.txt"),
        ({"work": "/proc/nowhere"}, "a directory that can be written"),
        ({"begun": "nowhere", "recipe": [RTN(scale="absmax")]}, "nowhere: got no job.json"),
    ],
)
def test_a_run_that_cannot_end_well_does_not_begin(request_, wanted, tiny_model, tmp_path):
    with pytest.raises(LessenError, match=wanted):
        lessen.compress(tiny_model, tmp_path / "out", **request_)
    assert not list(tmp_path.iterdir())


def test_a_hopeless_text_is_told_before_any_other_is_read(tiny_model, tmp_path, monkeypatch):
    from lessen.evaluate import texts

    monkeypatch.setattr(texts, "read", lambda *_, **__: pytest.fail("the texts to judge on were read"))
    short = tmp_path / "short.txt"
    short.write_text("hello world!\n")
    for job_ in (
        lambda: lessen.compress(tiny_model, tmp_path / "out", calibration=short),
        lambda: lessen.plan(tiny_model, calibration=short),
    ):
        with pytest.raises(LessenError, match=r"short\.txt: got \d+ tokens, wanted \d+ for \d+ windows of \d+; give more text"):
            job_()
    assert not (tmp_path / "out").exists()


def test_a_text_for_methods_that_read_none_is_not_read(tiny_model, tmp_path):
    job.enough_text(job.settled(tiny_model, job.Request(recipe=[RTN(scale="absmax")])), job.Request(calibration=tmp_path / "nowhere"))


def test_a_text_that_is_calibrated_on_cannot_judge(tiny_model, tiny_texts, tmp_path):
    with pytest.raises(UsageError, match="which is the calibration text"):
        lessen.compress(tiny_model, tmp_path / "out", calibration=tiny_texts[0], evaluation=[tiny_texts[0]])


def test_a_package_that_an_export_needs_is_missed_at_once(tiny_model, tmp_path, monkeypatch):
    for package in ("gguf", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(LessenError, match=rf"pip install 'lessen\[{package}\]'"):
            lessen.compress(tiny_model, tmp_path / "out", exports=[package])


def test_a_disk_that_is_too_small_is_told_at_once(tiny_model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(LessenError, match=r"1 MB free, wanted about .* MB for this run; free space"):
        lessen.compress(tiny_model, tmp_path / "out", exports=[])


@pytest.mark.parametrize("request_", [{}, {"to": "4bpw"}, {"recipe": [AWQ(4, 32)]}, {"recipe": [Select((GPTQ(4, 32), RTN(4, 32)))]}])
def test_layers_that_store_their_weights_transposed_are_named(request_, tmp_path):
    model = save(tiny("gpt2"), tmp_path / "gpt2")
    told = r"gpt2: got 12 Conv1D layers \(transformer\.h\.0\.attn\.c_attn first\) and no nn\.Linear, wanted .*; prune .*lessen\.load"
    with pytest.raises(UsageError, match=told) as raised:
        lessen.compress(model, tmp_path / "out", **request_)
    assert "stored transposed" in str(raised.value)


def test_what_is_told_of_conv1d_can_be_followed(tmp_path):
    from transformers.pytorch_utils import Conv1D

    model = tiny("gpt2")
    for name, part in list(model.named_modules()):
        if isinstance(part, Conv1D):
            linear = torch.nn.Linear(part.weight.shape[0], part.weight.shape[1])
            linear.load_state_dict({"weight": part.weight.T, "bias": part.bias})
            model.set_submodule(name, linear)
    job.settled(model, job.Request(recipe=[RTN(4, 32)]))
    job.settled(save(tiny("gpt2"), tmp_path / "gpt2"), job.Request(recipe=[BlockInfluence(), RTN(8, 32, on="embeddings")]))


def test_a_remedy_names_no_container_that_refuses_too(tmp_path):
    """OPT is known to neither: what one of them would have recommended, the other refuses."""
    found = job.settled(save(tiny("opt", hidden_size=64, word_embed_proj_dim=64), tmp_path / "opt"), job.Request(recipe=[RTN(4, 16)]))
    for name, other in (("gguf", "onnx"), ("onnx", "gguf")):
        with pytest.raises(LessenError, match=f"model_type 'opt', wanted one of .*, mistral, .* for {name.upper()}") as raised:
            foresee.result(found, [name])
        assert raised.value.remedy == "the Hugging Face directory holds it, for transformers" and other not in str(raised.value).lower()


def test_widths_that_no_block_divides_are_told_without_a_group_that_would_be_refused(tmp_path):
    model = save(tiny(hidden_size=40, intermediate_size=72), tmp_path / "odd")
    found = job.settled(model, job.Request())  # whole rows: no usual group divides 40
    for name, least in (("gguf", 32), ("onnx", 16)):
        with pytest.raises(LessenError) as raised:
            foresee.result(found, [name])
        assert raised.value.remedy is not None and "quantize with" not in raised.value.remedy
        assert f"no multiple of {least} divides its rows of " in raised.value.remedy


def test_what_will_fit_is_not_refused(tiny_model):
    for method in (RTN(4, 32, symmetric=False), RTN(8, 32), RTN(2, None), Select((GPTQ(4, 32),))):
        found = job.settled(tiny_model, job.Request(recipe=[method]))
        foresee.result(found, ["gguf", "onnx", "gptq"])


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ([Wanda(ratio=0.25), BlockInfluence(), RTN(4, 32)], r"down_proj.weight: got 72 input features after Wanda.*--multiple 32\)"),
        ([FLAP(ratio=0.25, across="model"), GPTQ(4, 32)], r"got any width after FLAP.*give FLAP multiple=32"),
        ([FLAP(ratio=0.25, across="model", multiple=48), GPTQ(4, 32)], r"got a multiple of 48 input features after FLAP"),
        ([Wanda(ratio=0.25, across="model"), Select((GPTQ(4, 32), GPTQ(4, 16)))], r"multiple=32"),
    ],
)
def test_widths_that_cannot_be_grouped_are_told_at_once(recipe, told, tiny_model, tmp_path):
    with pytest.raises(UsageError, match=told):
        lessen.compress(tiny_model, tmp_path / "out", recipe=recipe, exports=[])
    assert not list(tmp_path.iterdir())


def test_widths_that_can_be_grouped_are_not_refused(tiny_model):
    for recipe in (
        [Wanda(ratio=0.25, multiple=32), BlockInfluence(), RTN(4, 32)],
        [Wanda(ratio=1 / 3), RTN(4, 32)],  # 64 of 96 stay
        [FLAP(ratio=0.25, across="model", multiple=32), GPTQ(4, 32)],
        [Wanda(ratio=0.25), RTN(4, None)],
        [Wanda(ratio=0.5, unit="kv_group"), RTN(4, 32)],  # one of two groups stays, 32 features
    ):
        job.settled(tiny_model, job.Request(recipe=recipe))


def test_a_short_text_says_what_it_is_enough_for():
    from lessen.calibration import _too_short
    from lessen.stats.data import TooShort

    def remedy(fits: int) -> str | None:
        return _too_short(TooShort("t", got=1, wanted="more", fits=fits), own_share=0.0, count=32, length=64).remedy

    assert remedy(10) == "give more text, or ask for fewer tokens (--tokens 512)"  # 8 windows and 2 held out
    assert remedy(5) == "give more text"  # 4 windows and 2 held out are the least


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (lessen.compress, ("m", "o"), {"exprots": []}, r"compress\(\): got 'exprots', .* did you mean exports\?"),
    (lessen.compress, ("m", "o"), {"exports": "gguf"}, r"compress\(exports\): got 'gguf' \(str\), wanted a list or None"),
    (lessen.compress, ("m", "o"), {"tokens": "many"}, r"compress\(tokens\): got 'many' \(str\), wanted int or None"),
    (lessen.compress, ("m",), {}, r"missing a required argument: 'out'"),
    (lessen.compress, (3, "o"), {}, r"compress\(ref\): got 3 \(int\)"),
    (lessen.plan, ("m",), {"recipes": []}, r"did you mean recipe\?"),
    (lessen.plan, ("m",), {"recipe": ["GPTQ"]}, r"wanted methods such as"),
    (lessen.plan, ("m",), {"recipe": [GPTQ]}, r"wanted methods such as"),
    (lessen.apply, (torch.nn.Linear(1, 1), []), {"mod": "mask"}, r"did you mean mode\?"),
    (lessen.apply, (torch.nn.Linear(1, 1), []), {"mode": "masc"}, r"wanted 'slice' or 'mask'"),
    (lessen.apply, ("model", []), {}, r"apply\(model\): got 'model' \(str\), wanted Module"),
    (lessen.load, ("m",), {"dtpye": None}, r"did you mean dtype\?"),
    (lessen.load, ("m",), {"dtype": "float16"}, r"wanted a torch.dtype or None"),
    (lessen.load, (3,), {}, r"wanted a torch.nn.Module"),
    (lessen.export, ("m", "o", "gguf"), {"plian": "F32"}, r"did you mean plain\?"),
    (lessen.export, ("m", "o"), {}, r"missing a required argument: 'format'"),
    (lessen.export, ("m", "o", "ggfu"), {}, r"did you mean gguf\?"),
]


@pytest.mark.parametrize(("function", "args", "keywords", "wanted"), CALLS)
def test_a_wrong_call_names_the_nearest_argument(function, args, keywords, wanted):
    with pytest.raises(UsageError, match=wanted):
        function(*args, **keywords)


@pytest.mark.parametrize(
    "tokens",
    [
        ["plan", "m", "--threads", "0"],
        ["compress", "m", "--max-kld", "-1"],
        ["apply", "p", "--max-kld", "nan"],
        ["compress", "m", "--max-kld", "1", "--no-eval"],
    ],
)
def test_the_command_line_refuses_what_no_run_can_keep(tokens, capsys):
    assert run(tokens) == 2
    assert "wanted" in capsys.readouterr().err
