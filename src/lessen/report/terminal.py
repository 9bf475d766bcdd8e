"""The end of a run in a terminal: one compact table, with rich or in plain lines."""

from typing import TYPE_CHECKING

from lessen.core.record import Run
from lessen.report import facts
from lessen.report.text import number, percent, size

if TYPE_CHECKING:
    from rich.console import RenderableType


def rows(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, compared with) for size, quality, speed by runtime and files."""
    lines = [
        ("size", size(facts.after(run, "size_bytes")), f"was {size(facts.before(run, 'size_bytes'))}"),
        ("bits per weight", number(facts.after(run, "bpw")), f"was {number(facts.before(run, 'bpw'))}"),
    ]
    for name, row in run.quality.items():
        side = row.get("nearness", "")
        text = f"{name} ({side})" if side and side not in name else name
        lines.append((f"perplexity, {text}", number(row.get("ppl")), f"was {number(row.get('ppl_reference'))}"))
        lines.append(
            (f"KL, {text}", number(row.get("kld_mean")), f"floor {number(row.get('kld_noise'))}, top-1 {percent(row.get('top1'))}")
        )
    if not run.quality:
        lines.append(("quality", "not measured", ""))
    for row in run.speed:
        name = f"{row.get('runtime', '?')}, {row.get('model', '?')}"
        speeds = f"prefill {number(row.get('prefill_tps'))}, {facts.conditions(row)}"
        lines.append((name, f"{number(row.get('decode_tps'))} tok/s", str(row.get("reason") or speeds)))
    if not run.speed:
        lines.append(("speed", "not measured", ""))
    for row in run.exports:
        files = f"{row.get('path', '')}, {size(row.get('size_bytes'))} with all files"
        lines.append((str(row.get("format", "?")), size(row.get("weights_bytes")), files))
    return lines


def plain(run: Run) -> str:
    """The table as lines of text, for pipes and logs.

    >>> print(plain(Run(source={"label": "m", "size_bytes": 4000}, sizes={"after": {"size_bytes": 1000, "bpw": 8.0}})))
    m went from 4.00 kB to 1.00 kB, 4.00 times smaller.
    size             1.00 kB       was 4.00 kB
    bits per weight  8.00          was –
    quality          not measured
    speed            not measured
    """
    table = rows(run)
    widths = [max(len(row[i]) for row in table) for i in (0, 1)]
    lines = (f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in table)
    return "\n".join([facts.headline(run), *lines])


def summary(run: Run) -> "RenderableType":
    """The table for a rich console. Text of the run is taken literally, never as rich markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right", style="green")
    table.add_column(style="dim")
    for row in rows(run):
        table.add_row(*map(Text, row))
    return Group(Text(facts.headline(run)), table)
