"""Commands that make something: compress, and its two halves plan and apply."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import RUNNING, Calibration, Evaluation, Methods, Result, Running, Switch, wishes
from lessen.cli.output import emit, say, table, tell
from lessen.cli.running import judgeable, listening, show_run


@app.command(
    help_epilogue=epilogue(
        "lessen compress smollm2-135m --out small",
        "lessen compress path/to/model --to 4bpw --calibration notes.txt --out small",
        "lessen compress model.gguf --method GPTQ --bits 3 --group 64 --max-kld 0.5",
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
    work: Annotated[Path | None, Parameter(metavar="DIR", group=RUNNING)] = None,
    running: Running = Running(),
) -> None:
    """Make a model smaller, and report what it cost and what it won.

    Args:
        model: A Hugging Face directory, a GGUF file, package.module:factory, or smollm2-135m.
        work: Where finished blocks are kept until the end, so that a killed run can go on. Beside the result unless told otherwise.
    """
    asked = wishes(methods, calibration)  # first: a misspelt wish is told before anything large is loaded
    _make("compress", model, result, evaluation, running, work=work, **asked)


@app.command(
    help_epilogue=epilogue(
        "lessen plan smollm2-135m --to 70MB",
        "lessen plan path/to/model --method FLAP --ratio 0.2 --method GPTQ --bits 4 --out plan",
        "lessen plan model.gguf --recipe recipe.toml --json",
    )
)
def plan(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    fresh: Switch = False,
    methods: Methods = Methods(),
    calibration: Calibration = Calibration(),
    running: Running = Running(),
) -> None:
    """Make every decision and change nothing; `lessen apply` carries them out.

    Args:
        model: A Hugging Face directory, a GGUF file, package.module:factory, or smollm2-135m.
        out: Keep the decisions in DIR, for `lessen apply`; the same command goes on there after an interruption.
        fresh: Forget the decisions that DIR holds, instead of going on there.
    """
    asked = wishes(methods, calibration)
    import lessen
    from lessen.cli import requests
    from lessen.report.text import number

    with requests.kept(out, model, asked) as work, listening(running) as on_event:
        decided = lessen.plan(model, work=work, fresh=fresh, on_event=on_event, **asked)
    if running.json:
        emit("plan", {"out": out, "records": decided.records, "notes": decided.notes})
        return
    header = ("unit", "action", "before", "after", "bits", "error", "method")
    rows = [(r.unit, r.action, str(r.shape_before), str(r.shape_after), number(r.bits), number(r.error), r.method) for r in decided.records]
    table(header, rows, {4, 5})
    tell(decided.notes)
    say(f"\nlessen apply {out} carries this out" if out else "\nnothing was kept; --out DIR keeps the decisions for lessen apply")


@app.command(
    help_epilogue=epilogue(
        "lessen apply plan --out small",
        "lessen apply plan --out small --export gguf --no-eval",
        "lessen apply plan --out small --eval stories.txt --max-kld 0.2",
    )
)
def apply(
    plan: Path,
    /,
    *,
    result: Result = Result(),
    evaluation: Evaluation = Evaluation(),
    running: Running = Running(),
) -> None:
    """Carry out a plan: write the smaller model, its exports and its report.

    Args:
        plan: A directory that `lessen plan` wrote. It stays as it is.
    """
    from lessen.cli import requests

    model, asked = requests.read(plan)
    _make("apply", model, result, evaluation, running, begun=plan, **asked)


def _make(command: str, model: str, result: Result, evaluation: Evaluation, running: Running, **asked: Any) -> None:
    """Call `lessen.compress` as the options say, and show what it made."""
    judgeable(evaluation.max_kld, not evaluation.no_eval, "leave out --no-eval")
    import lessen

    with listening(running) as on_event:
        run = lessen.compress(
            model,
            result.out,
            exports=result.exports,
            overwrite=result.overwrite,
            fresh=result.fresh,
            evaluation=evaluation.eval or None,
            evaluate=not evaluation.no_eval,
            prove=not evaluation.no_prove,
            threads=running.threads,
            on_event=on_event,
            **asked,
        )
    show_run(command, run, result.out, running, evaluation)
