"""Commands that make something: compress, plan, apply, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import EVALUATION, RESULT, Calibration, Methods, Running, Switch, wishes


@Parameter(name="*", group=RESULT)
@dataclass(frozen=True)
class Result:
    """Where the result goes."""

    out: Annotated[Path, Parameter(metavar="DIR")] = Path("out")
    """Directory to write; it appears only when it is complete."""
    export: Annotated[str, Parameter(metavar="FORMATS")] = "gguf,onnx"
    """Further formats, with commas between them, or "none". `lessen ls` lists them."""
    overwrite: Switch = False
    """Replace DIR if it exists."""
    work: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """Where finished blocks are kept, so that a killed run can go on."""


@Parameter(name="*", group=EVALUATION)
@dataclass(frozen=True)
class Evaluation:
    """How the result is judged."""

    eval: Annotated[tuple[str, ...], Parameter(metavar="TEXT", negative="", show_default=False)] = ()
    """Held-out text: a .txt or .jsonl file or a directory. May be given several times."""
    no_eval: Switch = False
    """Do not measure quality and speed."""
    max_kld: Annotated[float | None, Parameter(metavar="NATS")] = None
    """Exit with 3 if the mean KL to the original is larger on any text."""
    strict: Switch = False
    """Fail if any part of the model had to be skipped."""


@app.command(
    help_epilogue=epilogue(
        "lessen compress smollm2-135m --out small",
        "lessen compress path/to/model --to 4bpw --calibration notes.txt --out small",
        "lessen compress model.gguf --method GPTQ --bits 3 --group 64 --export gguf --max-kld 0.5",
    )
)
def compress(
    model: str,
    /,
    *,
    result: Result = Result(),
    methods: Methods = Methods(),
    calibration: Calibration = Calibration(),
    evaluation: Evaluation = Evaluation(),
    running: Running = Running(),
) -> None:
    """Make a model smaller, and report what it cost and what it won.

    Args:
        model: A Hugging Face directory, a GGUF file, package.module:factory, or smollm2-135m.
    """
    import lessen
    from lessen.cli.running import listening, show_run

    asked = wishes(methods, calibration)  # first: a misspelt wish is told before anything large is loaded
    with listening(running) as on_event:
        run = lessen.compress(
            model,
            result.out,
            exports=() if result.export == "none" else tuple(result.export.split(",")),
            work=result.work,
            overwrite=result.overwrite,
            evaluate=not evaluation.no_eval,
            evaluation=evaluation.eval or None,
            threads=running.threads,
            on_event=on_event,
            **asked,
        )
    show_run("compress", run, result.out, running, max_kld=evaluation.max_kld, strict=evaluation.strict)
