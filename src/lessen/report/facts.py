"""What a run says, worked out once for every view: the headline, the four numbers, and the rows of the tables.

Nothing here measures. A figure that the run lacks is None, and a table without rows is empty; the views say so in words.
"""

from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean, geometric_mean
from typing import Any

from lessen.core.record import Run
from lessen.report.text import count, duration, number, percent, size, value

MISSED = "not measured"


@dataclass(frozen=True)
class Figure:
    """One of the four numbers: what it is, its value, and what it is compared with."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Table:
    """Rows as text, for HTML, Markdown and terminal alike. `numeric` columns are set flush right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


def label(run: Run) -> str:
    """What to call the model: the last part of a path, which says nothing of the machine it lay on."""
    return PurePath(str(run.source.get("label") or "model")).name


def before(run: Run, key: str) -> Any:
    """A size of the source, from `sizes` or else from `source`."""
    return run.sizes.get("before", {}).get(key, run.source.get(key))


def after(run: Run, key: str) -> Any:
    """A size of the result."""
    return run.sizes.get("after", {}).get(key)


def quality_mean(run: Run, key: str) -> float | None:
    """A quality figure, mean over the texts that have it; of perplexities the geometric mean, so that the mean loss counts."""
    values = [row[key] for row in run.quality.values() if row.get(key) is not None]
    if not values:
        return None
    return geometric_mean(values) if key.startswith("ppl") else fmean(values)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both are known and b is not 0."""
    return a / b if a is not None and b else None


def speedup(run: Run) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The pair (source row, fastest row of the small model) measured with equal batch and threads, by decode speed."""
    pairs = [
        (base, row)
        for base in run.speed
        for row in run.speed
        if base.get("model") == "source" != row.get("model")
        and all(base.get(k) == row.get(k) for k in ("batch", "threads"))
        and base.get("decode_tps")
        and row.get("decode_tps")
    ]
    return max(pairs, key=lambda pair: pair[1]["decode_tps"] / pair[0]["decode_tps"], default=None)


def conditions(row: dict[str, Any]) -> str:
    """Under what a speed was measured."""
    batch, threads = row.get("batch"), row.get("threads")
    parts = [f"batch {batch}" if batch else "", f"{threads} thread{'s' * (threads != 1)}" if threads else ""]
    return ", ".join(part for part in parts if part) or "batch and threads not stated"


def workload(run: Run) -> str:
    """What was timed, if it was the same for all, and how busy the machine was."""
    done = {(row.get("prompt_tokens"), row.get("new_tokens")) for row in run.speed}
    prompt, new = done.pop() if len(done) == 1 else (None, None)
    parts = [f"Prompt of {prompt} tokens, {new} tokens generated."] if prompt and new else []
    load = max((row["machine_load"] for row in run.speed if row.get("machine_load") is not None), default=None)
    if load is not None:
        parts.append(f"Machine load from other processes when timing began: {number(float(load), 2)}.")
    return " ".join(parts)


def busy(run: Run) -> bool:
    """Whether more processes than the machine has processors wanted one when timing began, so that a speed is partly noise."""
    load = max((row["machine_load"] for row in run.speed if row.get("machine_load") is not None), default=0)
    return load > (run.environment.get("cores") or float("inf"))


def headline(run: Run) -> str:
    """The run in one sentence."""
    small, big = after(run, "size_bytes"), before(run, "size_bytes")
    shrink = ratio(big, small)
    text = f"{label(run)} went from {size(big)} to {size(small)}" if big and small else f"{label(run)} was compressed"
    if shrink and shrink > 1:
        text += f", {number(shrink)} times smaller"
    text += _distance(run)
    pair = speedup(run)
    if pair:
        base, best = pair
        won = number(best["decode_tps"] / base["decode_tps"])
        names = f"in {best.get('runtime', '?')} as the original in {base.get('runtime', '?')}"
        text += f"{',' * bool(run.quality)} and decodes {won} times as fast {names}"
        text += " (timed on a busy machine)" * busy(run)
    return text + "."


SIDES = {"near": "on text near the calibration text", "far": "on text far from it"}
_NAMED = 3  # texts that a sentence can hold


def where(run: Run, text: str) -> str:
    """On what a figure was measured: its distance from the calibration text if that is known, else its name."""
    return SIDES.get(run.quality[text].get("nearness", ""), f"on {text}")


def measured(run: Run, key: str = "kld_mean") -> list[str]:
    """Texts that have a figure, near ones first."""
    return sorted((t for t in run.quality if run.quality[t].get(key) is not None), key=lambda t: run.quality[t].get("nearness") == "far")


def _distance(run: Run) -> str:
    """How far the result is from the original: on each text if there are few, else on the mean of them."""
    texts = measured(run)
    if not texts:
        return ""
    if 1 < len(texts) <= _NAMED:
        units = [" nats per token", *[""] * len(texts)]  # said once
        parts = [f"{number(run.quality[t]['kld_mean'])}{unit} {where(run, t)}" for t, unit in zip(texts, units, strict=False)]
        return f"; it differs from the original by {', '.join(parts[:-1])} and {parts[-1]}"
    mean = f", mean of {len(texts)} texts" if len(texts) > 1 else ""
    ppl, reference = quality_mean(run, "ppl"), quality_mean(run, "ppl_reference")
    instead = f" (perplexity {number(ppl)} instead of {number(reference)})" if ppl and reference else ""
    return f"; it differs from the original by {number(quality_mean(run, 'kld_mean'))} nats per token{mean}{instead}"


def four(run: Run) -> list[Figure]:
    """The numbers under the headline: size, bits per weight, quality cost, speed won."""
    shrink = ratio(before(run, "size_bytes"), after(run, "size_bytes"))
    was = before(run, "size_bytes")
    size_detail = f"from {size(was)}" + (f", {number(shrink)} × smaller" if shrink and shrink > 1 else "") if was else "of the weights"
    bpw, bpw_before = after(run, "bpw"), before(run, "bpw")
    kld, noise = quality_mean(run, "kld_mean"), quality_mean(run, "kld_noise")
    floor = f"noise floor {number(noise)}" if noise is not None else "noise floor not measured"
    texts = measured(run)
    shown = [f"{number(run.quality[t]['kld_mean'])} {run.quality[t].get('nearness') or t}" for t in texts]
    each = ", ".join(shown) if 1 < len(texts) <= _NAMED else ""
    cost = f"nats of KL per token{f': mean of {each}' if each else ''}; {floor}"
    pair = speedup(run)
    speed = Figure("Speed", MISSED, "no runtime was timed against the source")
    if pair:
        base, best = pair
        won = f"{number(best['decode_tps'] / base['decode_tps'])} ×"
        detail = f"decode {number(best['decode_tps'])} tokens/s in {best.get('runtime', '?')}, {number(base['decode_tps'])} before"
        speed = Figure("Speed", won, f"{detail}; {conditions(best)}{'; busy machine' * busy(run)}")
    return [
        Figure("Size", size(after(run, "size_bytes")) if after(run, "size_bytes") else MISSED, size_detail),
        Figure("Bits per weight", number(bpw) if bpw else MISSED, f"from {number(bpw_before)}" if bpw_before else "scales included"),
        Figure("Quality cost", number(kld) if kld is not None else MISSED, cost),
        speed,
    ]


def quality_table(run: Run) -> Table:
    """One column per text, one row per figure: narrow enough for a phone."""
    texts = list(run.quality)

    def row(name: str, key: str, write: Any = number) -> tuple[str, ...]:
        return (name, *(write(run.quality[text].get(key)) for text in texts))

    def rise(text: str) -> str:
        change = ratio(run.quality[text].get("ppl"), run.quality[text].get("ppl_reference"))
        return f"{number(100 * (change - 1), 2)} %" if change is not None else number(None)

    rows = (
        row("Perplexity before", "ppl_reference"),
        row("Perplexity after", "ppl"),
        ("Perplexity change", *(rise(text) for text in texts)),
        row("KL mean", "kld_mean"),
        row("KL standard error", "kld_error"),
        row("KL median", "kld_median"),
        row("KL 90th percentile", "kld_p90"),
        row("KL noise floor", "kld_noise"),
        row("Top-1 agreement", "top1", percent),
        row("Tokens scored", "tokens"),
    )
    kept = tuple(r for r in rows if any(cell != number(None) for cell in r[1:])) if texts else ()
    caption = "Quality on held-out text. KL in nats per token, to the original."
    titles = [f"{text} ({side})" if (side := run.quality[text].get("nearness")) and side not in text else text for text in texts]
    if any(run.quality[text].get("nearness") for text in texts):
        caption += " Near and far: from the calibration text."
    return Table(caption, ("", *titles), kept, frozenset(range(1, len(texts) + 1)))


def size_table(run: Run) -> Table:
    """Before and after, one row per size."""
    writers = (
        ("Size of the weights", "size_bytes", size),
        ("Bits per weight", "bpw", number),
        ("Parameters", "parameters", count),
        ("Multiplications per token", "macs", count),
    )
    rows = []
    for name, key, write in writers:
        big, small = before(run, key), after(run, key)
        if big is None and small is None:
            continue
        left = ratio(small, big)
        rows.append((name, write(big), write(small), percent(left)))
    return Table("Sizes before and after.", ("", "before", "after", "left"), tuple(rows), frozenset({1, 2, 3}))


def export_table(run: Run) -> Table:
    """The files written, with their proof of parity."""
    rows = tuple(
        (
            str(row.get("format", "?")),
            "this directory" if row.get("path") == "." else str(row.get("path", "")),
            size(row.get("weights_bytes")),
            size(row.get("size_bytes")),
            number(row.get("codes_equal")),
            number(row.get("kld_mean")),
            number(row.get("logits_max_error")),
            str(row.get("runtime") or f"not opened: {row.get('runtime_skipped') or 'no reason given'}"),
        )
        for row in run.exports
    )
    header = ("format", "file", "weights", "with all files", "codes equal", "KL to our model", "largest logit error", "opened by")
    caption = "Exported files, each read back and compared with the model in memory. All files: tokenizer and configuration too."
    return Table(caption, header, rows, frozenset({2, 3, 5, 6}))


def speed_table(run: Run) -> Table:
    """Tokens per second by runtime."""
    rows = tuple(
        (
            str(row.get("runtime", "?")),
            str(row.get("model", "?")),
            number(row.get("decode_tps")),
            number(row.get("prefill_tps")),
            row.get("reason") or conditions(row),
        )
        for row in run.speed
    )
    return Table("Tokens per second.", ("runtime", "model", "decode", "prefill", "measured with"), rows, frozenset({2, 3}))


def provenance(run: Run) -> list[Table]:
    """Where everything came from and how long it took."""
    sections = (
        ("Source model.", run.source),
        ("Calibration text.", run.calibration),
        ("Environment.", _flat(run.environment)),
        ("Wall-clock time by phase.", {phase: duration(seconds) for phase, seconds in run.seconds.items()}),
    )
    hidden = {"fingerprint"}  # thousands of digits, for programs
    return [
        Table(name, ("", ""), tuple((str(k).replace("_", " "), _fact(k, v)) for k, v in data.items() if k not in hidden))
        for name, data in sections
    ]


def _fact(key: str, item: Any) -> str:
    if key.endswith("_bytes"):
        return size(item)
    return f"{item[:16]}…" if key.endswith("sha256") and isinstance(item, str) else value(item)


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Nested objects become rows of their own."""
    rows: dict[str, Any] = {}
    for key, item in data.items():
        rows |= item if isinstance(item, dict) else {key: item}
    return rows
