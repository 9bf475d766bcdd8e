"""The report as Markdown: what fits into a terminal, an issue or a pull request."""

import re
from collections.abc import Sequence

from lessen.core.record import Run
from lessen.report import decisions, facts
from lessen.report.facts import Table
from lessen.report.text import method_line


def markdown(run: Run) -> str:
    """The whole report, without plots."""
    parts = [
        f"# {escaped(facts.label(run))}: compression report",
        escaped(facts.headline(run)),
        table(Table("", ("figure", "value", ""), tuple((f.name, f.value, f.detail) for f in facts.four(run)))),
        section("Quality", [facts.quality_table(run), facts.size_table(run)], "Quality was not measured in this run."),
        section(
            "Methods kept",
            [decisions.share_table(run), decisions.candidate_table(run), decisions.cut_table(run)],
            "Nothing was changed in this run.",
        ),
        "## Samples\n\n" + ("\n\n".join(map(sample, run.samples)) or "No text was sampled in this run."),
        section("Speed", [facts.speed_table(run)], "Speed was not measured in this run."),
        escaped(facts.workload(run)),
        section("Files", [facts.export_table(run)], "Nothing was exported beside the model directory itself."),
        "## Choices made for you\n\n" + notes(run),
        "## How it was made\n\n" + how(run),
        *(table(t) for t in facts.provenance(run) if t.rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, tables: Sequence[Table], missing: str) -> str:
    """A heading with those tables that have rows, or the sentence that nothing was measured."""
    return f"## {title}\n\n" + ("\n\n".join(table(t) for t in tables if t.rows) or missing)


def table(t: Table) -> str:
    r"""A pipe table under its caption.

    >>> print(table(Table("Sizes.", ("what", "bytes"), (("a|b", "12"),), frozenset({1}))))
    Sizes.
    <BLANKLINE>
    | what | bytes |
    |---|---:|
    | a\|b | 12 |
    """
    rule = "|".join("---:" if i in t.numeric else "---" for i in range(len(t.header)))
    lines = [_row(t.header), f"|{rule}|", *map(_row, t.rows)]
    return (f"{escaped(t.caption)}\n\n" if t.caption else "") + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"


def escaped(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> escaped("a | <b> `c`\n*d* snake_case")
    'a \\| &lt;b> \\`c\\` \\*d\\* snake_case'
    """
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def fenced(text: str, language: str = "") -> str:
    """A code block, its fence longer than any run of backticks in it.

    >>> print(fenced("a ``` b"))
    ````
    a ``` b
    ````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def sample(item: dict[str, str]) -> str:
    """A prompt with both continuations."""
    return "\n\n".join(
        f"{name}:\n\n{fenced(str(item.get(key, '')))}" for name, key in (("Prompt", "prompt"), ("Before", "before"), ("After", "after"))
    )


def notes(run: Run) -> str:
    """Choices made for the user, as a list."""
    return "\n".join(f"- {escaped(note)}" for note in run.notes) or "None: everything was stated in the request."


def how(run: Run) -> str:
    """The command and the recipe."""
    recipe = "\n".join(method_line(entry) for entry in run.recipe) or "(no recipe in the record)"
    return f"Command:\n\n{fenced(run.command, 'sh')}\n\nMethods, in order:\n\n{fenced(recipe)}"
