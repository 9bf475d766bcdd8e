"""The main job: a model in, a smaller one out, in the formats that runtimes open, with the evidence."""

import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lessen import job as jobs
from lessen.calibration import WINDOW
from lessen.core.event import Event, Listener
from lessen.core.record import Run
from lessen.engine.plan import Plan
from lessen.environment import environment
from lessen.errors import LessenError, UsageError
from lessen.evaluate.cost import cost
from lessen.evaluate.language import evaluate as evaluate_language
from lessen.evaluate.language import prepare as prepare_reference
from lessen.evaluate.speed import Workload, usable_processors
from lessen.export import EXPORTERS, export
from lessen.formats import spec
from lessen.models import open_checkpoint
from lessen.models.checkpoint import Checkpoint
from lessen.recipe import to_json
from lessen.report import html, model_card
from lessen.stats import data
from lessen.stats.text import builtin

if TYPE_CHECKING:
    from torch import nn

PLACES = {"gguf": "gguf/model.gguf", "onnx": "onnx", "gptq": "gptq"}
DEFAULT_EXPORTS = ("gguf", "onnx")
EVALUATION_WINDOWS = 16


@dataclass
class _Making:
    """One run under way: its record so far, and who listens."""

    run: Run
    on_event: Listener | None
    threads: int | None

    @contextmanager
    def phase(self, name: str, about: str = "") -> Iterator[None]:
        started = time.perf_counter()
        if self.on_event and about:
            self.on_event(Event(name, 0, 0, about))
        yield
        self.run.seconds[name] = self.run.seconds.get(name, 0.0) + time.perf_counter() - started


def compress(
    ref: "str | Path | nn.Module",
    out: str | Path,
    *,
    exports: Sequence[str] | None = None,
    evaluation: "Sequence[str | Path] | Mapping[str, Tensor] | None" = None,
    evaluate: bool = True,
    prove: bool = True,
    threads: int | None = None,
    work: str | Path | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
    **request: Any,
) -> Run:
    """Make a model smaller and write it, its exports and the report into one directory.

    Args:
        ref: a Hugging Face directory, a GGUF file, `package.module:factory`, `smollm2-135m`, or a module.
        out: directory to make; it appears only when everything in it is complete.
        exports: further formats; None takes GGUF and ONNX where the result fits them.
        evaluation: held-out text files, or token windows by name; None takes the built-in evaluation text.
        evaluate: measure quality and speed.
        prove: compare the logits of every written file with the model's; a runtime holds its model whole meanwhile.
        threads: processor threads for torch and the runtimes; None leaves torch as it is and times runtimes on all cores but one.
        work: directory in which finished blocks are kept (in a folder named after `out`) until the end; None: beside `out`.
            The same call goes on there after a kill.
        overwrite: replace `out` if it exists.
        on_event: hears of every block.
        request: `recipe`, `to`, `calibration`, `tokens`, `seed`, `written`, `embeddings` as in `lessen.job.prepare`.

    Returns:
        The record of the run, as written to `out/lessen.json`.

    Raises:
        UsageError: `out` exists, an unknown export. LessenError: anything that stops the run; `out` is then untouched.
    """
    out = Path(out)
    _check_out(out, overwrite)
    for name in exports or ():
        if name not in PLACES:
            _unknown_export(name)
    if threads is not None:
        if not 1 <= threads <= usable_processors():
            raise UsageError("--threads", got=str(threads), wanted=f"1 to {usable_processors()}, the processors this process may use")
        torch.set_num_threads(threads)
    work = (Path(work) if work else out.parent) / f".{out.name}.lessen-work"
    job = jobs.prepare(ref, **request, cache=work, on_event=on_event)
    texts = _evaluation_texts(job, evaluation) if evaluate else {}
    making = _Making(Run(command=_command(), environment=environment(job.seed)), on_event, threads)
    _run(making, job, _Wanted(out, work, exports, texts, prove))
    shutil.rmtree(work, ignore_errors=True)
    return making.run


@dataclass(frozen=True)
class _Wanted:
    """Where to, in what, and judged on what."""

    out: Path
    work: Path
    exports: Sequence[str] | None
    texts: Mapping[str, Tensor]
    prove: bool


def _run(making: _Making, job: "jobs.Job", wanted: _Wanted) -> None:
    """Decide, write, measure, report, and only then put the directory in place."""
    run, out = making.run, wanted.out
    run.source = describe_source(job.source)
    run.recipe, run.calibration, run.notes = to_json(job.methods), job.described, list(job.notes)
    with making.phase("compress"):
        plan = job.plan(wanted.work, making.on_event)
    run.records = list(plan.records)
    stage = out.parent / f".{out.name}.lessen-aside"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        _write(making, job, plan, stage, wanted)
        result = open_checkpoint(stage)
        run.sizes = {"before": cost(job.source), "after": cost(result)}
        run.notes += _already_small(run) + _wider(run, stage)
        if wanted.texts:
            _measure(making, job, result, stage, wanted.texts)
        _report(run, stage, out)
        _swap(stage, out)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            remedy = "free space and run again: it resumes"
            raise LessenError(str(out), got=str(error), wanted="room for the result", remedy=remedy) from None
        raise LessenError(str(out), got=str(error), wanted="to write there", remedy="mend it and run again: it resumes") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _command() -> str:
    """How this process was started, if it is the command line."""
    program = Path(sys.argv[0])
    ours = program.name == "lessen" or (program.name == "__main__.py" and program.parent.name == "lessen")
    return shlex.join(["lessen", *sys.argv[1:]]) if ours else "python"


def _already_small(run: Run) -> list[str]:
    """A word of caution where "before" is itself a quantized file."""
    bpw = run.sizes["before"]["bpw"]
    if bpw > 15:
        return []
    whole = run.sizes["before"]["parameters"] * 2 / 1e6
    return [f"The source is a quantized file already ({bpw:.2f} bits per weight); at 16 bits the same model takes {whole:.0f} MB."]


def _wider(run: Run, stage: Path) -> list[str]:
    """Say it where containers need more bytes than the codes and scales that they hold."""
    held, codes = (stage / "model.safetensors"), run.sizes["after"]["size_bytes"]
    size = held.stat().st_size if held.exists() else 0
    if size <= 1.01 * codes:
        return []
    why = "this container stores some widths in wider words, and the scales of a tied table twice"
    return [f"model.safetensors takes {size / 1e6:.1f} MB for {codes / 1e6:.1f} MB of codes and scales: {why}; see the files' own sizes."]


def describe_source(source: Checkpoint) -> dict[str, Any]:
    """What the record says of the model that came in."""
    parameters = sum(prod(source.shape(name)) for name in source.names)
    return {
        "label": source.label,
        "architecture": (source.config.get("architectures") or [source.config.get("model_type")])[0],
        "parameters": parameters,
        "size_bytes": source.size_bytes,
        "sha256": source.fingerprint(),
    }


def _old(out: Path) -> Path:
    """Where the result that is being replaced stands for a moment."""
    return out.parent / f".{out.name}.lessen-old"


def _check_out(out: Path, overwrite: bool) -> None:
    if _old(out).exists() and not out.exists():
        _old(out).rename(out)  # killed between the two renames of `_swap`
    if out.exists() and not overwrite:
        raise UsageError(str(out), got="something that exists", wanted="a new directory", remedy="choose another --out, or add --overwrite")
    if out.exists() and not (out.is_dir() and ((out / "lessen.json").exists() or not any(out.iterdir()))):
        raise UsageError(
            str(out), got="something that lessen did not write", wanted="a directory with lessen.json", remedy="choose another --out"
        )
    out.parent.mkdir(parents=True, exist_ok=True)


def _unknown_export(name: str) -> None:
    from lessen.errors import nearest

    raise UsageError("--export", got=repr(name), wanted="a known format", remedy=nearest(name, PLACES))


def _evaluation_texts(job: "jobs.Job", evaluation: Any) -> dict[str, Tensor]:
    """Windows by name of the text, none of which was calibrated on."""
    if isinstance(evaluation, Mapping):
        texts = dict(evaluation)
    else:
        documents = [data.read_text(path) for path in evaluation] if evaluation else [builtin("evaluation")]
        length = int(job.described.get("window", WINDOW))
        tokenizer = job.source.tokenizer()
        texts = {d.name: data.sequential_windows(tokenizer, d, length)[:EVALUATION_WINDOWS] for d in documents}
    jobs.overlap_check(job, texts)
    return texts


def _write(making: _Making, job: "jobs.Job", plan: Plan, stage: Path, wanted: _Wanted) -> None:
    """The Hugging Face directory and the other formats, each with its proof."""
    run, result = making.run, plan.result
    probe = None if job.text is None or not wanted.prove else job.text.heldout[:1, :128]
    with making.phase("write", "the Hugging Face directory"):
        run.exports.append(_relative(export(result, stage, "huggingface", probe=probe, on_event=making.on_event), stage))
    quantized = {name: found for name in result.names if (found := result.quantized(name))}
    run.formats = {name: spec.to_json(found.format) for name, found in quantized.items()}
    run.save(stage / "lessen.json")
    for name in wanted.exports if wanted.exports is not None else DEFAULT_EXPORTS:
        with making.phase(f"export {name}", EXPORTERS[name].summary):
            (stage / PLACES[name]).parent.mkdir(exist_ok=True)
            try:
                run.exports.append(_relative(export(result, stage / PLACES[name], name, probe=probe, on_event=making.on_event), stage))
            except LessenError as error:
                if wanted.exports is not None:
                    raise
                run.notes.append(f"No {EXPORTERS[name].summary}: {error}")
                if (stage / PLACES[name]).parent != stage:
                    shutil.rmtree((stage / PLACES[name]).parent, ignore_errors=True)
    for row in run.exports:
        run.notes += [f"{row['format']}: {note}" for note in row.get("notes", [])]


def _relative(row: dict[str, Any], stage: Path) -> dict[str, Any]:
    return {**row, "path": os.path.relpath(row["path"], stage)}


def _measure(making: _Making, job: "jobs.Job", result: Checkpoint, stage: Path, texts: Mapping[str, Tensor]) -> None:
    """Quality against the original, speed in every runtime, and what the model writes before and after."""
    from lessen.evaluate.samples import samples
    from lessen.evaluate.speed import measure, runtimes

    run = making.run
    with making.phase("evaluate", f"the original and the result on {', '.join(texts)}"):
        reference = prepare_reference(job.source, texts, on_event=making.on_event)
        run.quality = evaluate_language(result, reference, on_event=making.on_event)
    with making.phase("samples", "what both models write"):
        run.samples = samples(job.source, result, on_event=making.on_event)
    with making.phase("speed", "every runtime, taking turns"):
        rows = measure(runtimes(job.source, stage), _workload(job.source), threads=making.threads, on_event=making.on_event)
        run.speed = [{**row, "path": row["path"].replace(f"{stage}/", "")} for row in rows]


def _workload(source: Checkpoint) -> Workload:
    """The usual one, shorter where the model's context is."""
    usual = Workload()
    context = int(source.config.get("max_position_embeddings") or source.config.get("n_positions") or 4096)
    prompt = min(usual.prompt_tokens, max(1, context * 3 // 4))
    return replace(usual, prompt_tokens=prompt, new_tokens=max(2, min(usual.new_tokens, context - prompt)))


def _report(run: Run, stage: Path, out: Path) -> None:
    run.environment["out"] = out.name
    run.save(stage / "lessen.json")
    (stage / "README.md").write_text(model_card(run))
    (stage / "report.html").write_text(html(run))


def _swap(stage: Path, out: Path) -> None:
    """Put the finished directory in place; the old one goes only once the other stands ready."""
    old = _old(out)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    stage.rename(out)
    shutil.rmtree(old, ignore_errors=True)
