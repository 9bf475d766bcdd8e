"""Tables of what was decided: every edit, what was cut, and how the candidates of the blocks compare."""

from statistics import median

from lessen.core.record import Record, Run
from lessen.report.facts import Table
from lessen.report.text import distinct, number, role


def record_table(run: Run) -> Table:
    """Every edit."""
    rows = tuple(
        (r.unit.removesuffix(".weight"), r.action, r.method, number(r.bits), number(r.error), number(r.seconds, 2), r.reason)
        for r in run.records
    )
    header = ("unit", "action", "method", "bits", "error", "seconds", "reason")
    return Table(f"All {len(rows)} edits.", header, rows, frozenset({3, 4, 5}))


def cut_table(run: Run) -> Table:
    """What was removed or left alone: every record that is not a quantization."""
    rows = []
    for r in run.records:
        if r.action in ("quantize", "replace"):
            continue
        what = {"keep": f"{sum(r.shape_before):,} → {sum(r.shape_after):,}", "drop": "removed"}.get(r.action, r.action)
        rows.append((r.unit.removesuffix(".weight"), what, r.method, r.reason))
    return Table("What was cut, factored or skipped.", ("unit", "change", "method", "reason"), tuple(rows))


def candidate_table(run: Run) -> Table:
    """The candidates of the blocks: how often each was kept, and how much worse than the best it was."""
    blocks = {r.block: r for r in reversed(run.records) if len(r.candidates) > 1}
    names = distinct(name for r in blocks.values() for name in r.candidates)
    rows = []
    for name, short in names.items():
        tried = [r for r in blocks.values() if name in r.candidates]
        own = [(r.own[name], min(r.own.values())) for r in tried if name in r.own]
        times = [mine / least for mine, least in own if least > 0]
        rows.append(
            (
                short,
                f"{sum(r.method == name for r in tried)} of {len(blocks)}",
                _share(median(r.candidates[name] for r in tried)),
                _share(median(mine for mine, _ in own)) if own else number(None),
                f"{number(median(times))} ×" if times else number(None),
            )
        )
    caption = "Candidates, medians over the blocks. The error at the block's end decides; it holds what the blocks before have done."
    header = ("candidate", "kept", "error at the block's end", "added by the block", "against the best")
    return Table(caption, header, tuple(rows), frozenset({1, 2, 3, 4}))


def _share(x: float) -> str:
    return f"{number(100 * x)} %"


def method_shares(run: Run) -> list[tuple[str, int]]:
    """How often each method was the one kept, most often first."""
    names = [r.method for r in run.records if r.action not in ("skip", "replace")]
    return sorted(((name, names.count(name)) for name in dict.fromkeys(names)), key=lambda item: -item[1])


def by_role(records: list[Record]) -> dict[str, list[Record]]:
    """Records inside the blocks, by what the tensor is, in model order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.block is not None:
            groups.setdefault(role(record.unit), []).append(record)
    return groups


def share_table(run: Run) -> Table:
    """Methods by how many units they decided."""
    rows = tuple((name, str(n)) for name, n in method_shares(run))
    return Table("What was kept, and for how many units.", ("method", "units"), rows, frozenset({1}))
