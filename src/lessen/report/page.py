"""The report as one self-contained HTML page: inline styles and pictures, no script, no request to anywhere."""

from pathlib import Path
from typing import Any

from lessen.core.record import Run
from lessen.errors import LessenError
from lessen.report import decisions, facts, plots
from lessen.report.text import method_line, number, slug

_HERE = Path(__file__).parent


def html(run: Run) -> str:
    """The page of a run. Without matplotlib the plots are replaced by a sentence that says so."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters["slug"] = slug
    try:
        drawn, no_plots = plots.draw(run), ""
    except LessenError as error:
        drawn, no_plots = None, f"No plot: {error}."
    page = environment.get_template("page.html.jinja").render(
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        label=facts.label(run),
        headline=facts.headline(run),
        four=facts.four(run),
        missed=facts.MISSED,
        plots=drawn,
        no_plots=no_plots,
        quality=facts.quality_table(run),
        sizes=facts.size_table(run),
        cut=decisions.cut_table(run),
        exports=facts.export_table(run),
        records=decisions.record_table(run),
        facts=facts.provenance(run),
        shares=decisions.method_shares(run),
        candidates=decisions.candidate_table(run),
        samples=[_sample(sample) for sample in run.samples],
        bars=_bars(run),
        workload=facts.workload(run),
        failed=[row for row in run.speed if row.get("reason")],
        notes=run.notes,
        recipe=[method_line(entry) for entry in run.recipe],
        command=run.command,
        version=run.schema_version,
    )
    return page + "\n"


def _sample(sample: dict[str, Any]) -> dict[str, str]:
    """Split both continuations where they part, at the start of a word."""
    prompt, before, after = (str(sample.get(key, "")) for key in ("prompt", "before", "after"))
    if before.startswith(prompt) and after.startswith(prompt):
        before, after = before[len(prompt) :], after[len(prompt) :]
    before, after = before.strip(), after.strip()
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    if before != after:
        same = 1 + max(before.rfind(" ", 0, same), before.rfind("\n", 0, same))
    return {"prompt": prompt, "shared": before[:same], "before": before[same:], "after": after[same:]}


def _bars(run: Run) -> list[tuple[str, list[dict[str, Any]]]]:
    """Decode and prefill speeds, each as bars scaled to the fastest."""
    groups = []
    for title, key in (("Decode: one token at a time", "decode_tps"), ("Prefill: the prompt at once", "prefill_tps")):
        rows = [row for row in run.speed if row.get(key)]
        most = max((row[key] for row in rows), default=1)
        bars = [
            {
                "runtime": row.get("runtime", "?"),
                "model": row.get("model", "?"),
                "value": number(float(row[key])),
                "width": round(100 * row[key] / most, 1),
                "small": row.get("model") != "source",
                "conditions": facts.conditions(row),
                "range": " to ".join(number(float(x)) for x in row.get(key.replace("tps", "range"), ())),
            }
            for row in rows
        ]
        if bars:
            groups.append((title, bars))
    return groups
