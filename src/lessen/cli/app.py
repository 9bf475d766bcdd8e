"""The application that commands register with."""

from cyclopts import App, Parameter

import lessen

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
