"""The main job: a model in, a smaller one out, in the formats that runtimes open, with the evidence."""

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import lessen
from lessen import foresee
from lessen import job as jobs
from lessen.calibration import WINDOW
from lessen.core.event import Event, Listener
from lessen.core.record import Run
from lessen.core.strict import strict
from lessen.engine.dial import budget_of
from lessen.engine.lock import alone
from lessen.engine.plan import Plan
from lessen.engine.steps import Steps
from lessen.environment import command, environment, processor
from lessen.errors import LessenError, UsageError
from lessen.evaluate import texts as held_out
from lessen.evaluate.cost import cost
from lessen.evaluate.language import evaluate as evaluate_language
from lessen.evaluate.language import prepare as prepare_reference
from lessen.evaluate.speed import Workload, usable_processors
from lessen.export import EXPORTERS, export
from lessen.export.parity import random_probe, too_large
from lessen.export.price import USUAL
from lessen.foresee import PLACES
from lessen.models import open_checkpoint
from lessen.models.checkpoint import Checkpoint, stamps
from lessen.recipe import Dial, to_json
from lessen.report import html, model_card
from lessen.report.text import size as in_words
from lessen.stats import data


@strict(jobs.Request)
def compress(
    ref: str | Path | nn.Module,
    out: str | Path,
    *,
    exports: Sequence[str] | None = None,
    evaluation: Sequence[str | Path] | Mapping[str, Tensor] | None = None,
    evaluate: bool = True,
    prove: bool = True,
    threads: int | None = None,
    work: str | Path | None = None,
    begun: str | Path | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    on_event: Listener | None = None,
    **request: Any,
) -> Run:
    """Make a model smaller and write it, its exports and the report into one directory.

    Args:
        ref: a Hugging Face directory, a GGUF file, `package.module:factory`, `smollm2-135m`, or a module.
        out: directory to make; it appears only when everything in it is complete.
        exports: further formats; None takes GGUF and ONNX where the result fits them, and where they can meet the size asked for.
        evaluation: held-out text files, or token windows by name; None takes the built-in texts, one near the built-in
            calibration text and one far from it.
        evaluate: measure quality and speed.
        prove: compare the logits of every written file with the model's. A runtime holds its model whole meanwhile, in float32, so a
            model that would take more than half of the available memory is not tried; a note says so.
        threads: processor threads for torch and the runtimes; None leaves torch as it is and times runtimes on all cores but one.
        work: directory in which finished blocks are kept (in a folder named after `out`) until the end; None: beside `out`.
            The same call goes on there after a kill, whatever it was doing: deciding, exporting or measuring.
        begun: a directory in which `lessen.plan` kept its decisions for the same request; they are taken over.
        overwrite: replace `out` if it exists.
        fresh: forget what an earlier run for `out` has finished, instead of going on there.
        on_event: hears of every block.
        request: `recipe`, `to`, `calibration`, `tokens`, `seed`, `written`, `embeddings` as in `lessen.job.Request`.

    Returns:
        The record of the run, as written to `out/lessen.json`.

    Raises:
        UsageError: a request that makes no sense: `out` exists, an unknown export or option.
        LessenError: anything that stops the run; `out` is then untouched.
    """
    # A plan has made its choice for the usual exports already.
    asked, out = jobs.Request(**request, exports=None if begun is not None else exports), Path(out)
    foresee.place(out, overwrite or _old(out).exists())
    foresee.exports(exports or ())
    if threads is not None:
        if not 1 <= threads <= usable_processors():
            raise UsageError("--threads", got=str(threads), wanted=f"1 to {usable_processors()}, the processors this process may use")
        torch.set_num_threads(threads)
    aside = out.absolute().parent / f".{out.name}.lessen-work"
    work = (Path(work).absolute() if work else aside.parent) / aside.name
    with alone(aside, work), _tidy(aside, work):
        if fresh:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
        if _old(out).exists() and not out.exists():
            _old(out).rename(out)  # killed between the two renames of `_swap`
        foresee.place(out, overwrite)
        wanted = _Wanted(out, aside / "result", work, exports, evaluate, prove, threads)
        run = _run(ref, asked, wanted, evaluation, begun, on_event)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    return run


@contextmanager
def _tidy(*folders: Path) -> Iterator[None]:
    """Leave no folder behind in which nothing is kept."""
    try:
        yield
    finally:
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True)
class _Wanted:
    """Where to, in what, and how judged; `stage` is the directory under construction."""

    out: Path
    stage: Path
    work: Path
    exports: Sequence[str] | None
    evaluate: bool
    prove: bool
    threads: int | None
    left_out: Sequence[str] = ()

    @property
    def formats(self) -> Sequence[str]:
        return [name for name in USUAL if name not in self.left_out] if self.exports is None else self.exports


@dataclass
class _Making:
    """One run under way: its record so far, the steps that are finished, and who listens."""

    run: Run
    job: "jobs.Job"
    steps: Steps
    wanted: _Wanted
    on_event: Listener | None
    asked: "jobs.Request"

    def step(self, name: str, about: str, depends: Mapping[str, Any], work: Any, files: Sequence[str] = ()) -> None:
        """One step, taken from disk if an earlier run has finished it."""
        if self.on_event:
            self.on_event(Event(name, 0, 0, about))
        if self.steps.take(name, depends, work, files) and self.on_event:
            self.on_event(Event(name, 0, 0, "finished by the run before"))


def _run(ref: Any, asked: "jobs.Request", wanted: _Wanted, evaluation: Any, begun: str | Path | None, on_event: Listener | None) -> Run:
    """Refuse what must be refused, decide, write, measure, report, and only then put the directory in place."""
    found = jobs.settled(ref, asked)
    wanted = replace(wanted, left_out=found.left_out)
    foresee.result(found, wanted.exports or ())
    foresee.room(found, wanted.exports or (), wanted.out.absolute(), wanted.work)
    jobs.agrees(found, asked, wanted.work)
    documents = _documents(asked, evaluation) if wanted.evaluate else ()
    jobs.enough_text(found, asked)
    held = _windows(found, asked, documents) if wanted.evaluate else held_out.HeldOut({})
    if begun is not None and not wanted.work.exists():
        _take_over(Path(begun), wanted.work)
    try:
        job = jobs.prepare(found, asked, wanted.work, on_event)
        held = _apart(job, held)
        job.notes += held.notes
        run = Run(command=command(), environment=environment(job.seed))
        making = _Making(run, job, Steps(wanted.stage.parent, wanted.stage, run), wanted, on_event, asked)
        _make(making, _decided(making), held.tokens)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            remedy = "free space and run again: it resumes"
            raise LessenError(str(wanted.out), got=str(error), wanted="room for the result", remedy=remedy) from None
        raise LessenError(str(wanted.out), got=str(error), wanted="to write there", remedy="mend it and run again: it resumes") from None
    return making.run


def _decided(making: _Making) -> Plan:
    """The decisions, with what the record says of them."""
    run, job = making.run, making.job
    run.source = describe_source(job.source)
    run.recipe, run.calibration, run.notes = to_json(job.methods), job.described, list(job.notes)
    begun, started = any(making.wanted.work.glob("pass*-step*.json")), time.perf_counter()
    plan = job.plan(making.wanted.work, making.on_event)
    run.records = list(plan.records)
    took = time.perf_counter() - started

    def note() -> None:
        run.seconds["compress"] = took
        if begun:
            run.notes.append("Part of the decisions came from an earlier run; its time is not in the figures.")

    making.steps.take("compress", {"job": _identity(making)}, note)
    return plan


def _identity(making: _Making) -> dict[str, Any]:
    """What the result depends on, as plain data."""
    job = making.job
    return {
        "source": job.source.fingerprint(),
        "files": stamps(job.source),
        "methods": [repr(method) for method in job.methods],
        "text": job.described,
        "lessen": lessen.__version__,
    }


def _make(making: _Making, plan: Plan, texts: Mapping[str, Tensor]) -> None:
    """From decisions to a directory in its place."""
    run, wanted, stage = making.run, making.wanted, making.wanted.stage
    for rest in stage.parent.glob(".*.aside"):  # of a run that was killed while it wrote
        shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
    _write(making, plan)
    result = open_checkpoint(stage)
    if texts:
        _measure(making, result, texts)
    run.notes += _already_small(run) + _wider(run, plan.result) + _beyond(making)
    _report(run, stage, wanted.out)
    _swap(stage, wanted.out)


def _take_over(begun: Path, work: Path) -> None:
    """Begin with the decisions that `lessen.plan` kept; links cost nothing, and whoever writes here writes aside and renames."""
    if not (begun / "job.json").is_file():
        raise UsageError(str(begun), got="no job.json", wanted="a directory of lessen.plan", remedy="make it with lessen plan --out")

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    aside = work.with_name(f"{work.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(begun, aside, copy_function=link)
    aside.rename(work)


def _already_small(run: Run) -> list[str]:
    """A word of caution where "before" is itself a quantized file."""
    bpw = run.sizes["before"]["bpw"]
    if bpw > 15:
        return []
    whole = run.sizes["before"]["parameters"] * 2 / 1e6
    return [f"The source is a quantized file already ({bpw:.2f} bits per weight); at 16 bits the same model takes {whole:.0f} MB."]


def _wider(run: Run, decided: Checkpoint) -> list[str]:
    """Say it where the directory needs more bytes than the codes and scales that were decided, and why."""
    size = next((row["weights_bytes"] for row in run.exports if row["format"] == "huggingface"), 0)
    codes = run.sizes["after"]["size_bytes"]
    if size <= 1.01 * codes:
        return []
    formats = {name: found.format for name in decided.names if (found := decided.quantized(name))}
    modules = dict(decided.skeleton().named_modules())
    tables = [name for name in formats if isinstance(modules.get(name.removesuffix(".weight")), nn.Embedding)]
    folded = any(run.formats[name]["bits"] > format.bits for name, format in formats.items() if name in run.formats)
    causes = {
        "zero points are folded into codes of more bits (exact)": folded,
        "the codes of a token table are bytes": any(formats[name].bits < 8 for name in tables),
        "a tied table has its scales twice": any(target in tables for target in decided.tied.values()),
    }
    why = ", ".join(cause for cause, holds in causes.items() if holds) or "codes fill words of 32 bits"
    notes = [f"huggingface: its weights take {in_words(size)} for {in_words(codes)} of codes and scales: {why}."]
    if folded:
        notes.append("`lessen export` from this directory sees the folded codes; containers named in --export now get the others.")
    return notes


def _beyond(making: _Making) -> list[str]:
    """Say it where the weights in a file are larger than the size that was asked for."""
    wish = making.asked.to
    if wish is None:
        return []
    budget = budget_of(making.job.source, Dial.parse(wish) if isinstance(wish, str) else wish)
    return [
        f"{row['format']}: its weights take {in_words(row['weights_bytes'])}, more than the {in_words(budget)} that were asked for."
        for row in making.run.exports
        if row["weights_bytes"] > budget
    ]


def describe_source(source: Checkpoint) -> dict[str, Any]:
    """What the record says of the model that came in."""
    parameters = sum(prod(source.shape(name)) for name in source.names)
    return {
        "label": source.label,
        "architecture": (source.config.get("architectures") or [source.config.get("model_type")])[0],
        "parameters": parameters,
        "size_bytes": source.size_bytes,
        "sampled_sha256": source.fingerprint(),
        "files": stamps(source),
    }


def _old(out: Path) -> Path:
    """Where the result that is being replaced stands for a moment."""
    return out.parent / f".{out.name}.lessen-old"


def _documents(asked: "jobs.Request", evaluation: Any) -> Any:
    """The texts to judge on, read; token windows as they are."""
    if isinstance(evaluation, Mapping):
        return evaluation
    mine = Path(asked.text) if isinstance(asked.text, str | Path) else Path("builtin")
    for path in map(Path, evaluation or ()):
        if path.exists() and mine.exists() and path.samefile(mine):
            got, wanted = f"{path}, which is the calibration text", "a text that was not calibrated on"
            raise UsageError("--eval", got=got, wanted=wanted, remedy="name another text")
    return [data.read_text(path) for path in evaluation] if evaluation else None


def _windows(found: "jobs.Settled", asked: "jobs.Request", documents: Any) -> held_out.HeldOut:
    """Windows by name of the text, as long as those of the calibration."""
    if isinstance(documents, Mapping):
        return held_out.HeldOut(dict(documents))
    config = found.source.config
    usual = min(WINDOW, int(config.get("max_position_embeddings") or config.get("n_positions") or WINDOW))
    length = int(asked.text.shape[1]) if isinstance(asked.text, Tensor) else usual
    return held_out.read(found.source.tokenizer(), documents, length=length)


def _apart(job: "jobs.Job", held: held_out.HeldOut) -> held_out.HeldOut:
    """The windows that were not calibrated on; told by their words, or without a tokenizer by their tokens."""
    known = job.described.get("fingerprint")
    if known is None:
        jobs.overlap_check(job, held.tokens)
        return held
    return held_out.apart(held, known, job.source.tokenizer())


def _write(making: _Making, plan: Plan) -> None:
    """The Hugging Face directory and the other formats, each with its proof."""
    run, wanted, stage, result = making.run, making.wanted, making.wanted.stage, plan.result
    probe, unproved = _probe(making)
    depends = {"job": _identity(making), "prove": wanted.prove}
    stage.parent.mkdir(parents=True, exist_ok=True)

    def whole() -> None:
        shutil.rmtree(stage, ignore_errors=True)
        row = export(result, stage, "huggingface", probe=probe, on_event=making.on_event)
        run.exports.append(_relative(row, stage, unproved))
        told = stage / "lessen.json"  # what is stored need not be what was decided: zero points are folded into wider codes
        run.formats = Run.load(told).formats if told.exists() else {}
        run.save(stage / "lessen.json")
        before = cost(making.job.source)
        run.sizes = {"before": before, "after": cost(result, parameters=before["parameters"])}

    making.step("write", "the Hugging Face directory", depends, whole, ["*"])
    run.save(stage / "lessen.json")
    for name in PLACES.keys() - set(wanted.formats):
        shutil.rmtree(stage / Path(PLACES[name]).parts[0], ignore_errors=True)
    for name in wanted.formats:

        def further(name: str = name) -> None:
            (stage / PLACES[name]).parent.mkdir(exist_ok=True)
            try:
                row = export(result, stage / PLACES[name], name, probe=probe, on_event=making.on_event)
                run.exports.append(_relative(row, stage, unproved))
            except LessenError as error:
                if wanted.exports is not None:
                    raise
                run.notes.append(f"No {EXPORTERS[name].summary}: {error}")
                if making.on_event:
                    making.on_event(Event(f"export {name}", 0, 0, f"given up: {error}"))
                if (stage / PLACES[name]).parent != stage:
                    shutil.rmtree((stage / PLACES[name]).parent, ignore_errors=True)

        about = {**depends, "asked": wanted.exports is not None}
        making.step(f"export {name}", EXPORTERS[name].summary, about, further, [Path(PLACES[name]).parts[0]])
    for row in run.exports:
        run.notes += [f"{row['format']}: {note}" for note in row.get("notes", [])]
    for reason in dict.fromkeys(row["runtime_skipped"] for row in run.exports if row.get("runtime_skipped")):
        files = ", ".join(row["format"] for row in run.exports if row.get("runtime_skipped") == reason)
        run.notes.append(f"Read back and compared, but not opened in its runtime: {files} ({reason}).")


def _probe(making: _Making) -> tuple[Tensor | None, str]:
    """Tokens to prove the written files on, drawn at random where the recipe read no text; or None, and why."""
    job = making.job
    if not making.wanted.prove:
        return None, "not asked for"
    if reason := too_large(job.source):
        return None, reason
    return random_probe(job.source) if job.text is None else job.text.heldout[:1, :128], ""


def _relative(row: dict[str, Any], stage: Path, unproved: str) -> dict[str, Any]:
    """What the record says of a written file; `unproved` is why nothing was run on it, if so."""
    return {**row, "path": os.path.relpath(row["path"], stage)} | ({"runtime_skipped": unproved} if unproved else {})


def _measure(making: _Making, result: Checkpoint, texts: Mapping[str, Tensor]) -> None:
    """Quality against the original, speed in every runtime, and what the model writes before and after."""
    from lessen.evaluate.samples import samples
    from lessen.evaluate.speed import measure, runtimes

    run, source, stage, on_event = making.run, making.job.source, making.wanted.stage, making.on_event
    depends = {"job": _identity(making)}

    def quality() -> None:
        reference = prepare_reference(source, texts, on_event=on_event)
        run.quality = evaluate_language(result, reference, on_event=on_event)
        for name, side in held_out.nearness(run.calibration, run.quality).items():
            run.quality[name]["nearness"] = side

    def written() -> None:
        run.samples = samples(source, result, on_event=on_event)

    def speed() -> None:
        rows = measure(runtimes(source, stage), workload, threads=making.wanted.threads, on_event=on_event)
        run.speed = [{**row, "path": row["path"].replace(f"{stage}/", "")} for row in rows]

    on = {"texts": {name: data.sha256(ids) for name, ids in texts.items()}}
    making.step("evaluate", f"the original and the result on {', '.join(texts)}", depends | on, quality)
    making.step("samples", "what both models write", depends, written)
    workload = _workload(source)
    how = {"workload": asdict(workload), "threads": making.wanted.threads, "processor": processor(), "exports": run.exports}
    making.step("speed", "every runtime, taking turns", depends | how, speed)


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
