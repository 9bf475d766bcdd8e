"""Every method, by name. A method is one file here and one line in this list; help, recipes, docs and tests follow from it."""

from lessen.methods.awq import AWQ
from lessen.methods.bnscale import BNScale
from lessen.methods.fisher import Fisher
from lessen.methods.flap import FLAP
from lessen.methods.gptq import GPTQ
from lessen.methods.influence import BlockInfluence
from lessen.methods.isomorphic import Isomorphic
from lessen.methods.lamp import LAMP
from lessen.methods.magnitude import Magnitude
from lessen.methods.reap import REAP
from lessen.methods.rtn import RTN
from lessen.methods.samp import SAMP
from lessen.methods.select import Select
from lessen.methods.surgeon import Surgeon
from lessen.methods.taylor import Taylor
from lessen.methods.ukmp import UKMP
from lessen.methods.vocabulary import Vocabulary
from lessen.methods.wanda import Wanda

METHODS = (
    *(RTN, GPTQ, AWQ, Select),
    *(Magnitude, Wanda, FLAP, BlockInfluence, Taylor, Fisher, Surgeon, UKMP, SAMP),
    *(Isomorphic, LAMP, BNScale, REAP, Vocabulary),
)

__all__ = [
    "AWQ",
    "FLAP",
    "GPTQ",
    "LAMP",
    "METHODS",
    "REAP",
    "RTN",
    "SAMP",
    "UKMP",
    "BNScale",
    "BlockInfluence",
    "Fisher",
    "Isomorphic",
    "Magnitude",
    "Select",
    "Surgeon",
    "Taylor",
    "Vocabulary",
    "Wanda",
]
