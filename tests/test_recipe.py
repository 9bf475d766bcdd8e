from pathlib import Path
from typing import Any

import pytest

from lessen import recipe
from lessen.core.options import options
from lessen.errors import UsageError
from lessen.methods import METHODS
from lessen.recipe import Dial, Recipe

NAMES: dict[str, Any] = {cls.__name__: cls for cls in METHODS}
TEXT = """\
# a comment with name = "x"
tokens = 4096
seed = 7

[[method]]
name = "RTN"
bits = 8

[[method]]
name = "GPTQ"
bits = 3
group = 64
damping = 1
"""


def test_a_toml_list_becomes_methods_in_order():
    read = recipe.loads(TEXT)
    assert [type(m).__name__ for m in read] == ["RTN", "GPTQ"]
    assert read[1] == NAMES["GPTQ"](bits=3, group=64, damping=1.0)
    assert isinstance(read[1].damping, float)
    assert (read.tokens, read.seed, read.calibration) == (4096, 7, None)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_survives_json_and_its_own_spelling(cls):
    method = cls()
    assert recipe.from_json(recipe.to_json([method])) == [method]
    assert recipe.parse(cls.__name__)[0] == method


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_option_of_every_method_explains_itself(cls):
    for option in options(cls):
        assert option.help.endswith("."), f"{cls.__name__}.{option.name} has no docstring under its field"


def test_methods_inside_methods_in_both_spellings():
    want = NAMES["Select"](candidates=(NAMES["GPTQ"](bits=3), NAMES["RTN"](bits=3)))
    inline = '[[method]]\nname = "Select"\ncandidates = ["GPTQ(bits=3)", {name = "RTN", bits = 3}]'
    assert recipe.loads(inline)[0] == want
    assert recipe.parse("Select(candidates=[GPTQ(bits=3), RTN(bits=3)])")[0] == want
    assert recipe.from_json(recipe.to_json([want])) == [want]


def test_none_turns_an_optional_value_off():
    assert recipe.parse("GPTQ(group=none)")[0] == NAMES["GPTQ"](group=None)
    assert recipe.loads('[[method]]\nname = "GPTQ"\ngroup = "none"')[0] == NAMES["GPTQ"](group=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('tokens = 1\n[[method]]\nname = "GTPQ"', ["r.toml:3", "GTPQ", "did you mean GPTQ?"]),
        ('[[method]]\nname = "RTN"\n[[method]]\nname = "GPTQ"\nbitss = 3', ["r.toml:5", "bitss", "did you mean bits?"]),
        ('[[method]]\nname = "RTN"\nbits = 3\n[[method]]\nname = "GPTQ"\nbits = "3"', ["r.toml:6", "GPTQ.bits = '3' (str)", "an integer"]),
        ('[[method]]\nname = "RTN"\nbits = true', ["r.toml:3", "RTN.bits = True (bool)", "an integer"]),
        ('[[method]]\nname = "RTN"\nsymmetric = 1', ["r.toml:3", "true or false"]),
        ('[[method]]\nname = "RTN"\nscale = "mze"', ["r.toml:3", "did you mean mse?"]),
        ('[[method]]\nname = "RTN"\ngroup = 1.5', ["r.toml:3", "an integer or none"]),
        ('token = 1\n[[method]]\nname = "RTN"', ["r.toml:1", "did you mean tokens?"]),
        ('tokens = "x"\n[[method]]\nname = "RTN"', ["r.toml:1", "an integer or none"]),
        ('[[method]]\nname = "Select"\ncandidates = [{name = "RTN", bitz = 3}]', ["r.toml:3", "bitz", "did you mean bits?"]),
        ('[[method]]\nname = "Select"\ncandidates = 3', ["r.toml:3", "a list, each a method"]),
        ("[[method]]\nbits = 3", ["r.toml:1", 'name = "GPTQ"']),
        ("[[method]]\nname = GPTQ", ["r.toml:2", "TOML", "quotes"]),
        ("", ["no [[method]]", "at least one"]),
    ],
)
def test_errors_name_the_line_and_the_remedy(text, said):
    with pytest.raises(UsageError) as error:
        recipe.loads(text, "r.toml")
    message = str(error.value)
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize("text", ["GPTQ(4)", "GPTQ(bits=__import__('os'))", "GPTQ(", "4", "a.b(c=1)", "GPTQ(**x)"])
def test_a_method_in_one_line_is_data_and_never_code(text):
    with pytest.raises(UsageError):
        recipe.parse(text)


def test_files_as_toml_and_json(tmp_path: Path):
    (tmp_path / "r.toml").write_text(TEXT)
    read = recipe.load(tmp_path / "r.toml")
    assert read == recipe.loads(TEXT)
    import json

    (tmp_path / "r.json").write_text(json.dumps(recipe.to_json(read)))
    assert recipe.load(tmp_path / "r.json") == Recipe(read.methods)
    with pytest.raises(UsageError, match="missing"):
        recipe.load(tmp_path / "missing.toml")


def test_the_dial_reads_sizes_bits_and_shares():
    assert Dial.parse("70MB") == Dial("bytes", 70e6)
    assert Dial.parse("64 MiB") == Dial("bytes", 64 * 2**20)
    assert Dial.parse("4bpw") == Dial("bpw", 4.0)
    assert Dial.parse(".5x") == Dial("times", 0.5)
    for dial in (Dial("bytes", 70e6), Dial("bytes", 64.0 * 2**20), Dial("bpw", 4.25), Dial("times", 0.5)):
        assert Dial.parse(str(dial)) == dial


@pytest.mark.parametrize("text", ["70", "MB", "-4bpw", "0bpw", "64bpw", "2x", "0x", "4 parsecs", "", "nanMB"])
def test_a_dial_that_says_nothing_is_refused(text):
    with pytest.raises(UsageError, match="--to: got"):
        Dial.parse(text)
