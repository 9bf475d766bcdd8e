"""The report of a run on an analog chip: one self-contained HTML page, drawn from its record alone."""

from pathlib import Path

from lessen.errors import LessenError
from lessen.report import analog_facts as facts
from lessen.report import analog_plots as plots
from lessen.report.facts import MISSED
from lessen.report.text import slug

_MAPPED = ("simulate", "cost", "robust")
SECTIONS = {
    "Quality over time": ("simulate", "robust"), "Energy by layer": _MAPPED, "Tile map": _MAPPED, "Pareto front": ("explore",),
    "The chip": (*_MAPPED, "explore"), "How it was made": (*_MAPPED, "explore"),
}  # fmt: skip
"""The kinds of run that each section of the page belongs to."""

_HERE = Path(__file__).parent


def html(run: facts.Run) -> str:
    """The page of a run, given as the JSON object of its record. Without matplotlib the plots are replaced by a sentence that says so."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters["slug"] = slug
    try:
        drawn, no_plots = plots.draw(run), ""
    except LessenError as error:
        drawn, no_plots = None, f"No plot: {error}."
    page = environment.get_template("analog.html.jinja").render(
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        title=facts.title(run),
        label=facts.label(run),
        headline=facts.headline(run),
        four=facts.four(run),
        missed=MISSED,
        plots=drawn,
        no_plots=no_plots,
        qualities=facts.quality_tables(run),
        costs=facts.cost_table(run),
        layers=facts.layer_table(run),
        digital=facts.digital_table(run),
        front=facts.front_table(run),
        refused=facts.refused_table(run),
        derived=facts.derived_table(run),
        provenance=facts.provenance(run),
        sections=[name for name, kinds in SECTIONS.items() if run["kind"] in kinds],
        run=run,
    )
    return page + "\n"
