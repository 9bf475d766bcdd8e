"""The measured table of docs/person-search.md, made from the benchmark's result: python -m benchmarks.person_search.table."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.prune_person_search import MATERIALS, REMOVED, compared, measured_with

ROOT = Path(__file__).resolve().parents[2]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "prune_person_search.json", ROOT / "docs" / "person-search.md"
START, END = "<!-- measured -->\n", "\n<!-- /measured -->"


def table(rows: list[dict[str, Any]]) -> str:
    """One row a material, budget and method: means over the fresh seeds that all methods were measured with."""
    lines = ["| material | MACs removed | seeds | method | search mAP | top-1 | detection AP |", "|---|--:|---|---|--:|--:|--:|"]
    for material in MATERIALS:
        for percent in sorted(REMOVED):
            seeds = ", ".join(map(str, measured_with(rows, material, percent)))
            means = compared(rows, material, percent)
            best = {key: max((each[key] for each in means.values()), default=0.0) for key in ("map", "top1", "ap")}
            for method, figures in means.items():
                cells = [f"**{figures[key]:.3f}**" if figures[key] == best[key] else f"{figures[key]:.3f}" for key in best]
                lines.append(f"| {material} | {percent} % | {seeds} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fresh(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with its table made again."""
    before, _, rest = page.partition(START)
    return before + START + table(rows) + END + rest.partition(END.strip())[2]


def main() -> int:
    PAGE.write_text(fresh(PAGE.read_text(), json.loads(RESULT.read_text())["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
