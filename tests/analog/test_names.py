"""Names that `lessen.analog` hands out."""

import subprocess
import sys
from importlib import import_module
from pkgutil import walk_packages

from lessen import analog
from lessen.analog.robust.applied import METHODS


def test_names_are_what_they_say_and_stay_it_when_all_modules_are_imported():
    found = {name: getattr(analog, name) for name in analog._HOMES}
    for module in walk_packages(analog.__path__, "lessen.analog."):
        import_module(module.name)
    for name, thing in found.items():
        assert getattr(analog, name) is thing and not isinstance(thing, type(sys)) and thing.__name__ == name
    assert set(found) <= set(dir(analog))


def test_every_method_of_the_command_line_is_among_them():
    assert {method.name for method in METHODS} <= set(analog._HOMES)


def test_rooms_are_found_without_an_import_of_their_own():
    code = "from lessen import analog; assert 'torch' not in sys.modules; print(analog.devices.PCM().first, analog.cost.__name__)"
    found = subprocess.run([sys.executable, "-c", f"import sys; {code}"], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["20.0", "lessen.analog.cost"]
