"""The measured tables of the README, made from benchmarks/results: python -m benchmarks.tables [--check].

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test keeps it equal to the committed results.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def quality() -> str:
    """llm_quant: one row a method and grid, the rotated variant last."""
    lines = ["| grid | method | bits per weight | KL near | KL far | top-1 far | CPU-s | peak MB |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for row in sorted(_rows("llm_quant"), key=lambda row: row.get("variant") == "rotated"):
        if row.get("near_kld") is None or row.get("method") == "float32":
            continue
        grid = f"W{row['bits']} g{row['group'] or 'row'}{', rotated' if row['variant'] == 'rotated' else ''}"
        columns = (("bpw", 2), ("near_kld", 3), ("far_kld", 3), ("far_top1", 3), ("cpu_seconds", 0), ("peak_mb", 0))
        lines.append(f"| {grid} | {row['method']} | {' | '.join(_figure(row, key, digits) for key, digits in columns)} |")
    return "\n".join(lines)


def captioner() -> str:
    """prune_vlm on the balanced captioner: one row a ratio and variant, means over seeds, spread of the cross-entropies."""
    rows = [row for row in _rows("prune_vlm") if row.get("model", "balanced") == "balanced" and row["key"] != "full dense"]
    titles = ("removed", "method", "of the tower", "of the language model", "CE pruned", "CE recovered", "R@5", "seeds")
    lines = [f"| {' | '.join(titles)} |", "|--:|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        if "variant" not in row:
            lines.append(f"| 0 % | dense | | | | {row['ce']:.2f} | {row['r5']:.2f} | |")
    for ratio, variant in dict.fromkeys((row["ratio"], row["variant"]) for row in rows if "variant" in row):
        these = [row for row in rows if (row.get("ratio"), row.get("variant")) == (ratio, variant)]
        shares = [f"{mean(row[f'{part}_removed'] for row in these):.0%}" for part in ("vision", "language")]
        losses = [_spread([row[f"{when}_ce"] for row in these]) for when in ("before", "after")]
        found = f"{mean(row['after_r5'] for row in these):.2f}"
        lines.append(f"| {ratio} % | {variant} | {' | '.join([*shares, *losses, found, str(len(these))])} |")
    return "\n".join(lines)


def pruned() -> str:
    """prune_llm: one row a ratio and method, perplexities at each stage, near and far from the calibration text."""
    stages = ("pruned", "compensated", "recovered")
    titles = ["removed", "method", *(f"{text}, {stage}" for text in ("near", "far") for stage in stages)]
    lines = [f"| {' | '.join(titles)} |", f"|--:|---|{'--:|' * 6}"]
    rows = {(row["ratio"], row["method"], row["stage"]): row for row in _rows("prune_llm") if "near_ppl" in row}
    for ratio, method in dict.fromkeys((ratio, method) for ratio, method, _ in sorted(rows, key=lambda key: (key[0], key[1] != "lessen"))):
        each = [rows.get((ratio, method, "dense" if method == "dense" else stage), {}) for stage in stages]
        found = [_figure(row, f"{text}_ppl", 1) for text in ("near", "far") for row in ([*each[:1], {}, {}] if method == "dense" else each)]
        lines.append(f"| {ratio:.0%} | {method} | {' | '.join(found)} |")
    return "\n".join(lines)


def analog() -> str:
    """analog_quality: one row a network, chip and method; trainings are means over their seeds."""
    titles = ("network", "chip", "method", "figure", "digital", "at first", "a day", "a year", "chips")
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---|--:|--:|--:|--:|--:|"]
    rows = [row for row in _rows("analog_quality") if "times" in row]
    order = {network: place for place, network in enumerate(dict.fromkeys(row["network"] for row in rows))}
    rows.sort(key=lambda row: (order[row["network"]], row["method"] != "plain"))
    for network, chip, method in dict.fromkeys((row["network"], row["chip"], row["method"]) for row in rows):
        these = [row for row in rows if (row["network"], row["chip"], row["method"]) == (network, chip, method)]
        seeds = f", {len(these)} seeds" if len(these) > 1 else ""
        moments = [_moment(these, when) for when in (None, 86400.0, 365 * 86400.0)]
        said = [network, chip, method.partition("(")[0] + seeds, these[0]["figure"], f"{these[0]['digital']:.4g}", *moments]
        lines.append(f"| {' | '.join([*said, str(these[0]['chips'])])} |")
    return "\n".join(lines)


def _moment(rows: list[dict[str, Any]], seconds: float | None) -> str:
    """Mean over chips and seeds at a time (None: the first), and the spread over chips."""
    found = [[look for look in row["times"] if look["seconds"] == seconds] if seconds else row["times"][:1] for row in rows]
    if not all(found):
        return ""
    return f"{mean(looks[0]['mean'] for looks in found):.4g} ± {mean(looks[0]['spread'] for looks in found):.2g}"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def goals() -> str:
    """Every figure that was promised, with what was measured."""
    lines = ["| figure | measured | to reach | |", "|---|--:|--:|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        for goal in json.loads(path.read_text())["goals"]:
            have = goal["value"]
            value = "not measured" if have is None else f"{have:.4g}" if isinstance(have, float) else have
            verdict = {True: "met", False: "**missed**", None: ""}[goal["met"]]
            lines.append(f"| `{path.stem}`: {goal['name']} | {value} | {goal['target']} | {verdict} |")
    return "\n".join(lines)


TABLES = {"quality": quality, "pruned": pruned, "captioner": captioner, "analog": analog, "goals": goals}


def fresh(text: str) -> str:
    """The README with its tables made again."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = before + start + table() + end + rest.partition(end.strip())[2]
    return text


def _rows(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _figure(row: dict[str, Any], key: str, digits: int) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:.{digits}f}"


def main(arguments: list[str]) -> int:
    text = README.read_text()
    if "--check" in arguments:
        if fresh(text) != text:
            print("README.md: its tables are not those of benchmarks/results; run python -m benchmarks.tables", file=sys.stderr)
            return 1
        return 0
    README.write_text(fresh(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
