"""Every method, by name. A method is one file here and one line in this list; help, recipes, docs and tests follow from it."""

from lessen.methods.awq import AWQ
from lessen.methods.flap import FLAP
from lessen.methods.gptq import GPTQ
from lessen.methods.influence import BlockInfluence
from lessen.methods.magnitude import Magnitude
from lessen.methods.rtn import RTN
from lessen.methods.select import Select
from lessen.methods.wanda import Wanda

METHODS = (RTN, GPTQ, AWQ, Select, Magnitude, Wanda, FLAP, BlockInfluence)

__all__ = ["AWQ", "FLAP", "GPTQ", "METHODS", "RTN", "BlockInfluence", "Magnitude", "Select", "Wanda"]
