"""Every method, by name. A method is one file here and one line in this list; help, recipes, docs and tests follow from it."""

from lessen.methods.awq import AWQ
from lessen.methods.gptq import GPTQ
from lessen.methods.rtn import RTN
from lessen.methods.select import Select

METHODS = (RTN, GPTQ, AWQ, Select)

__all__ = ["METHODS", *(method.__name__ for method in METHODS)]
