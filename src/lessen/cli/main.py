"""From the words on the command line to an exit code, and what becomes of an error."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from lessen.cli import analog, judging, looking, making, pruning, recovering
from lessen.cli.app import app
from lessen.cli.arguments import HEADS, fold
from lessen.cli.output import emit_error
from lessen.cli.wording import told
from lessen.errors import LessenError

# importing the six registers their commands
__all__ = ["analog", "app", "judging", "looking", "main", "making", "pruning", "recovering", "run"]


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 asked wrongly, 3 quality gate missed, 130 interrupted, 143 ended by SIGTERM."""
    tokens = list(sys.argv[1:] if tokens is None else tokens)
    signal.signal(signal.SIGTERM, _ended)
    try:
        code = run(tokens)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`lessen ls | head`): nothing is wrong, and the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


class Ended(KeyboardInterrupt):
    """The process was told to end: as after Ctrl-C, whatever is open is closed and the locks are given back."""


def _ended(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is being closed is closed
    raise Ended


def run(tokens: Sequence[str]) -> int:
    """Run one command; its exit code. Errors become one line on stderr, with a traceback only under --debug."""
    try:
        app(_prepare(tokens))
        return 0
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in tokens:
            traceback.print_exc()
        message, code = _explain(error, tokens)
        message = " ".join(message.split())
        print("lessen:", message, file=sys.stderr)
        if "--json" in tokens:
            emit_error(tokens[0], message, code, error)
        return code


def _explain(error: BaseException, tokens: Sequence[str]) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    match error:
        case LessenError():
            return str(error), error.exit_code
        case CycloptsError():
            return told(error, [name for name in _command(tokens) if not name.startswith("-")]), 2
        case KeyboardInterrupt():
            word, code = ("ended by SIGTERM", 143) if isinstance(error, Ended) else ("interrupted", 130)
            return word + "; what is finished is kept, and the same command goes on from there" * _resumes(tokens), code
        case OSError(strerror=str(reason)):
            return f"{error.filename or 'operating system'}: {reason}", 1
        case _:
            return f"{type(error).__name__}: {error}; this should not happen: --debug shows where", 1


def _resumes(tokens: Sequence[str]) -> bool:
    """Whether the command leaves what it has finished behind for its next run."""
    written = any(token.startswith("--out") for token in tokens)
    return bool(tokens) and (tokens[0] in ("compress", "apply") or (tokens[0] in ("plan", "analog") and written))


def _command(tokens: Sequence[str]) -> App:
    """The command that the first words name; the application itself if they name none."""
    command = app
    for token in tokens:
        if token.startswith("-") or token not in command:
            break
        command = command[token]
    return command


def _prepare(tokens: Sequence[str]) -> list[str]:
    command = _command(tokens)
    if command is app or command.default_command is None or not any(token.startswith(HEADS) for token in tokens):
        return list(tokens)
    own = {name for argument in command.assemble_argument_collection() for name in argument.names}
    return fold(tokens, own | {"--help", "-h"})
