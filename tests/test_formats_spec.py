"""Every format survives JSON; anything else is refused by name."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.errors import UsageError
from lessen.formats import KINDS, Float, Format, Int, PerGroup, PerRow, PerTensor
from lessen.formats.granularity import SCALE_DTYPES
from lessen.formats.spec import from_json, int_from_json, to_json

granularities = st.one_of(st.just(PerTensor()), st.just(PerRow()), st.builds(PerGroup, st.integers(1, 4096)))
dtypes = st.sampled_from(SCALE_DTYPES)
formats = st.one_of(
    st.builds(Int, st.integers(2, 8), granularities, st.booleans(), st.booleans(), dtypes),
    st.builds(Float, st.sampled_from(list(KINDS)), granularities, dtypes),
)


@given(formats)
@settings(deadline=None)
def test_every_format_comes_back_equal(format: Format):
    assert from_json(json.loads(json.dumps(to_json(format)))) == format


GOOD = to_json(Int(4, PerGroup(32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "integer"}, r"type 'integer', wanted int or float; did you mean int\?"),
        ({"type": None}, "type None"),
        ({"grup": 3}, r"option 'grup', wanted an option of int; did you mean group\?"),
        ({"group": "rows"}, "group 'rows', wanted 'tensor', 'row' or a number"),
        ({"group": 0}, "group 0"),
        ({"group": True}, "group True"),
        ({"scale_dtype": "float61"}, "did you mean float16"),
        ({"bits": 12}, "wanted a whole number from 2 to 8"),
    ],
)
def test_what_is_wrong_is_named(change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        from_json(GOOD | change)


def test_missing_options_are_named():
    with pytest.raises(UsageError, match=r"lessen\.json: got no 'bits'"):
        from_json({key: value for key, value in GOOD.items() if key != "bits"}, "lessen.json")


def test_only_integers_where_only_integers_fit():
    assert int_from_json(GOOD) == Int(4, PerGroup(32), scale_dtype=torch.float16)
    with pytest.raises(UsageError, match="got a float format, wanted an int format"):
        int_from_json(to_json(Float()))
