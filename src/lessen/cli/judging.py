"""Commands that judge a finished model or carry it to another runtime: evaluate, export."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lessen.cli.app import app, epilogue
from lessen.cli.options import Running, Switch
from lessen.cli.output import emit, printed, say, table, tell
from lessen.cli.running import gate, judgeable, listening


@app.command(
    help_epilogue=epilogue(
        "lessen evaluate small --reference smollm2-135m",
        "lessen evaluate small --reference path/to/model --eval stories.txt --eval code.jsonl",
        "lessen evaluate model.gguf --windows 8 --json",
    )
)
def evaluate(
    model: str,
    /,
    *,
    reference: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    eval: Annotated[tuple[str, ...], Parameter(metavar="TEXT", negative="", show_default=False)] = (),
    windows: int | None = None,
    length: int | None = None,
    max_kld: Annotated[float | None, Parameter(metavar="NATS")] = None,
    running: Running = Running(),
) -> None:
    """Measure size, perplexity on held-out text, and the distance to the original.

    Args:
        model: A model directory, a GGUF file, package.module:factory, or smollm2-135m.
        reference: The original to compare with.
        eval: Held-out text: a .txt or .jsonl file or a directory. May be given several times. Without it: built-in documentation and code.
        windows: How many windows to score of each text at most. Without it: 16, and 6 of the built-in code.
        length: Tokens in a window. Without it: 512, or the model's context if that is shorter.
        max_kld: Exit with 3 if the mean KL to the original is larger on any text.
    """
    judgeable(max_kld, reference is not None, "name it with --reference")
    from lessen import evaluate as measure
    from lessen import open_checkpoint
    from lessen.evaluate.cost import cost
    from lessen.report.text import number, size

    checkpoint = open_checkpoint(model)
    with listening(running) as on_event:
        original = None if reference is None else open_checkpoint(reference)
        noise = original is not None
        quality = measure(checkpoint, original, eval or None, windows=windows, length=length, noise=noise, on_event=on_event)
    notes = list(dict.fromkeys(note for row in quality.values() for note in row.pop("notes", ())))
    figures = cost(checkpoint, parameters=None if original is None else cost(original)["parameters"])
    if running.json:
        emit("evaluate", {"model": model, "reference": reference, "cost": figures, "quality": quality, "notes": notes})
    else:
        say(f"{size(figures['size_bytes'])}, {number(figures['bpw'])} bits per weight, {number(figures['macs'])} MACs per token\n")
        names = ("ppl", "ppl_reference", "kld_mean", "kld_error", "kld_median", "kld_p90", "kld_noise", "top1", "tokens")
        rows = [(name, *(number(row.get(name)) for row in quality.values())) for name in names]
        table(("", *quality), [row for row in rows if row[1] != number(None)], range(1, len(quality) + 1))
        tell(notes)
    with printed():
        gate(quality, max_kld)


@app.command(
    help_epilogue=epilogue(
        "lessen export small --format gguf --out small.gguf",
        "lessen export small --format onnx --out small-onnx --json",
        "lessen export path/to/model --format 'gguf(plain=F32)' --out model-f32.gguf",
    )
)
def export(
    model: str,
    /,
    *,
    format: str,
    out: Annotated[Path, Parameter(metavar="PATH")],
    overwrite: Switch = False,
    no_prove: Switch = False,
    running: Running = Running(),
) -> None:
    """Write a model for another runtime, with the same codes, and prove it.

    Args:
        model: A model directory, a GGUF file, package.module:factory, or smollm2-135m.
        format: Name of the exporter, its options after it. `lessen ls` lists the exporters.
        out: File or directory to write.
        overwrite: Replace it if it exists.
        no_prove: Do not open what was written in its runtime, which holds the model whole; codes are read back and compared all the same.
    """
    from lessen import recipe

    options = recipe.call(format, "--format")
    name = str(options.pop("name"))
    from lessen import export as write
    from lessen import open_checkpoint
    from lessen.export.parity import too_large
    from lessen.report.text import value
    from lessen.stats.data import builtin, sequential_windows

    with listening(running) as on_event:
        checkpoint = open_checkpoint(model)
        reason = "not asked for" if no_prove else too_large(checkpoint)
        probe = None if reason else sequential_windows(checkpoint.tokenizer(), builtin("evaluation"), 128, 1)
        done: dict[str, Any] = write(checkpoint, out, name, probe=probe, overwrite=overwrite, on_event=on_event, **options)
        done |= {"runtime_skipped": reason} if reason else {}
    if running.json:
        emit("export", done)
    else:
        table(("", ""), [(key.replace("_", " "), value(figure)) for key, figure in done.items() if figure not in (None, [])])
