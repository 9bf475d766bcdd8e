"""The application: its commands, its help, and what becomes of an error."""

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

import lessen
from lessen.cli.arguments import fold
from lessen.errors import LessenError

app = App(
    name="lessen",
    help="Take a trained network, return the smallest one that still does its job, with the evidence.",
    version=lessen.__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=""),
    suppress_keyboard_interrupt=False,
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)
app.register_install_completion_command(help="Install completion for this shell.")


def epilogue(*examples: str) -> str:
    """Examples under the help of a command, one a line."""
    return "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 a request that makes no sense, 3 quality gate missed, 130 interrupted."""
    tokens = list(sys.argv[1:] if tokens is None else tokens)
    try:
        code = run(tokens)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`lessen ls | head`): nothing is wrong, and the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(tokens: Sequence[str]) -> int:
    """Run one command; its exit code. Errors become one line on stderr, with a traceback only under --debug."""
    from lessen.cli import looking, making  # noqa: F401  (each registers its commands)

    try:
        app(_prepare(tokens))
        return 0
    except (CycloptsError, LessenError) as error:
        message = " ".join(str(error).split())
        code = error.exit_code if isinstance(error, LessenError) else 2
    except KeyboardInterrupt:
        message, code = "interrupted; finished blocks are kept, and the same command goes on from there", 130
    except BrokenPipeError:
        raise
    except Exception as error:
        message, code = f"{type(error).__name__}: {error}; this should not happen: --debug shows where", 1
    if "--debug" in tokens:
        traceback.print_exc()
    print(f"lessen: {message}", file=sys.stderr)
    return code


def _prepare(tokens: Sequence[str]) -> list[str]:
    if not tokens or "--method" not in " ".join(tokens):
        return list(tokens)
    command = tokens[0]
    if command not in app:
        return list(tokens)
    own = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    return fold(tokens, own | {"--help", "-h"})
