"""What the parser of the command line refuses, in the words of all other errors: where, got, wanted, remedy."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from lessen.errors import UsageError, nearest

_MEANT = {"--text": ("--eval", "--calibration"), "--output": ("--out",), "--force": ("--overwrite",)}  # what other tools call it
_TYPES = {int: "a whole number", float: "a number"}


def told(error: CycloptsError, commands: Sequence[str]) -> str:
    """The error as one line; `commands` are those that exist."""
    command = " ".join(error.command_chain or ())
    usage = f"lessen {command} --help shows how it is used"
    match error:
        case UnknownCommandError(unused_tokens=[token, *_]):
            said = UsageError("command line", got=token, wanted="a command", remedy=nearest(token, commands))
        case UnknownOptionError(token=token):
            own = [each for argument in error.argument_collection for each in argument.names if each.startswith("--")]
            said = UsageError(
                command, got=token.keyword or token.value, wanted="one of its options", remedy=_option(token.keyword or "", own)
            )
        case UnusedCliTokensError(unused_tokens=[token, *_]):
            said = UsageError(command, got=repr(token), wanted="nothing more", remedy=usage)
        case CoercionError(token=token, target_type=wanted) if token is not None:
            words = _TYPES.get(wanted) if isinstance(wanted, type) else None
            share = re.fullmatch(r"(\d+\.?\d*)%", token.value) if wanted is float else None
            remedy = f"write {float(share[1]) / 100:g}" if share else None
            said = UsageError(token.keyword or command, got=repr(token.value), wanted=words or "a value of another kind", remedy=remedy)
        case MissingArgumentError(argument=argument) if argument is not None and error.keyword:
            said = UsageError(error.keyword, got="nothing after it", wanted="a value", remedy=usage)
        case MissingArgumentError(argument=argument) if argument is not None:
            said = UsageError(command, got=f"no {argument.name}", wanted="one", remedy=usage)
        case RepeatArgumentError(token=token):
            name = token.keyword or token.value
            several = "several go into one, with commas between them: --export gguf,onnx" if name == "--export" else usage
            said = UsageError(name, got="the option twice", wanted="it once", remedy=several)
        case _:
            said = UsageError(
                command or "command line", got=" ".join(str(error).split()), wanted="a command as its help tells", remedy=usage
            )
    return str(said)


def _option(name: str, own: Sequence[str]) -> str:
    """The remedy for an option that the command does not have; where methods are named, it may be meant for one of them."""
    if meant := [option for option in _MEANT.get(name, ()) if option in own]:
        return f"did you mean {meant[0]}?"
    if close := get_close_matches(name, own, n=1, cutoff=0.75):
        return f"did you mean {close[0]}?"
    return "options of a method come after it: --method GPTQ --bits 3" if "--method" in own else f"choose from {', '.join(sorted(own))}"
