"""What a run on an analog chip says, worked out once for page and terminal: headline, four numbers, rows of tables.

A run is the JSON object that `lessen.analog.run.record` writes. Nothing here measures; what a run lacks is an empty table.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from lessen.report.facts import MISSED, Figure, Table
from lessen.report.text import count, duration, number, percent

Run = Mapping[str, Any]
ENERGIES = ("adc", "dac", "cells", "digital", "buffers", "interconnect", "loading")
"""What spends energy, in the order in which it is stacked."""
MOST = 40  # rows of a table for a terminal


def label(run: Run) -> str:
    """What to call the model: the last part of a path."""
    return PurePath(str(run["source"].get("label") or "model")).name


def title(run: Run) -> str:
    """What the run is."""
    kinds = {"simulate": "on analog chips", "cost": "what it costs on a chip", "robust": "made robust", "explore": "a search for chips"}
    return f"{label(run)}: {kinds[run['kind']]}"


def headline(run: Run) -> str:
    """The outcome in a sentence."""
    parts = []
    if run["qualities"] and run["metrics"]:
        metric, named = run["metrics"][0], []
        for found in run["qualities"]:
            last = found["rows"][metric["name"]][-1]
            named.append(f"{number(last['mean'])} {found['name']}")
        row = run["qualities"][0]["rows"][metric["name"]][-1]
        digital = run["qualities"][0]["digital"].get(metric["name"])
        was = "" if digital is None else f", {number(digital)} digital"
        parts.append(
            f"After {row['time']} on {run['chip']}, {metric['title']} is {' and '.join(named)} (mean of {row['chips']} chips){was}."
        )
    if run["costs"]:
        what, found = list(run["costs"].items())[-1]
        summary = found["summary"]
        parts.append(
            f"{_article(what)} {what} takes {joules(summary['energy_uj'] * 1e6)} and {number(summary['latency_us'])} µs, on a digital int8 "
            f"accelerator {joules(summary['baseline_energy_uj'] * 1e6)} and {number(summary['baseline_latency_us'])} µs."
        )
    if run["exploration"]:
        found = run["exploration"]
        parts.append(f"{len(found['front'])} of {len(found['designs'])} designs are beaten by none in quality, energy and area.")
    return " ".join(parts)


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def unit(most_pj: float) -> tuple[str, float]:
    """The unit in which energies up to `most_pj` read best, and how many of it a picojoule is.

    >>> unit(350.0), unit(2.5e7)
    (('pJ', 1.0), ('µJ', 1e-06))
    """
    for name, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if most_pj >= size:
            return name, 1 / size
    return "pJ", 1.0


def joules(pj: float) -> str:
    """An energy with its unit.

    >>> joules(2.5e7)
    '25.0 µJ'
    """
    name, scale = unit(pj)
    return f"{number(pj * scale)} {name}"


def four(run: Run) -> list[Figure]:
    """The numbers at the top of the page."""
    found = []
    if run["qualities"] and run["metrics"]:
        metric = run["metrics"][0]
        rows = run["qualities"][-1]["rows"][metric["name"]]
        digital = run["qualities"][-1]["digital"].get(metric["name"])
        detail = "" if digital is None else f"digital {number(digital)}"
        for row in dict.fromkeys((0, len(rows) - 1)):
            each = rows[row]
            found.append(Figure(f"{metric['title']}, {each['time']}", number(each["mean"]), f"± {number(each['spread'])}; {detail}"))
    for what, cost in list(run["costs"].items())[-1:]:
        summary = cost["summary"]
        found.append(Figure(f"Energy of {_article(what).lower()} {what}", joules(summary["energy_uj"] * 1e6),
                            f"digital {joules(summary['baseline_energy_uj'] * 1e6)}"))  # fmt: skip
        found.append(
            Figure(
                "Area", f"{number(summary['area_mm2'])} mm²", f"{count(summary['tiles'])} tiles, {percent(summary['utilisation'])} in use"
            )
        )
        if len(found) < 4:
            found.append(
                Figure("Chip", f"{number(summary['chip_tops_per_watt'])} TOPS/W", f"its macros {number(summary['macro_tops_per_watt'])}")
            )
    if run["exploration"]:
        found.append(Figure("Designs tried", str(len(run["exploration"]["designs"])), f"{len(run['exploration']['refused'])} refused"))
        found.append(Figure("On the front", str(len(run["exploration"]["front"])), "beaten by none"))
    while len(found) < 4:
        names = {f.name for f in found}
        rest = [Figure("Model", count(run["source"].get("parameters")), "parameters"), Figure("Chip", run["chip"], "described below"),
                Figure("Quality over time", MISSED, ""), Figure("Energy", MISSED, "")]  # fmt: skip
        found.append(next(f for f in rest if f.name not in names))
    return found[:4]


def quality_tables(run: Run) -> list[Table]:
    """A table for each network that was looked at: times down, numbers across."""
    tables = []
    for found in run["qualities"]:
        first, *others = run["metrics"]
        header = ("time", first["title"], "spread", "least", "most", *(m["title"] for m in others))
        rows = [
            ("digital", number(found["digital"].get(first["name"])), "", "", "", *(number(found["digital"].get(m["name"])) for m in others))
        ]
        for place, row in enumerate(found["rows"][first["name"]]):
            rest = [found["rows"][m["name"]][place] for m in others]
            numbers = (number(row["mean"]), number(row["spread"]), number(row["least"]), number(row["most"]))
            rows.append((row["time"], *numbers, *(f"{number(r['mean'])} ± {number(r['spread'])}" for r in rest)))
        chips = found["rows"][first["name"]][0]["chips"]
        what = ", ".join(run["methods"]) if found["name"] != "as mapped" and run["methods"] else found["name"]
        caption = f"{what[:1].upper()}{what[1:]}: mean and standard deviation over {chips} chips"
        tables.append(Table(caption, header, tuple(rows), frozenset(range(1, len(header)))))
    return tables


def cost_table(run: Run) -> Table:
    """Energy, latency, area and efficiency of every kind of inference, beside the digital accelerator."""
    rows, found = [], {}
    for what, found in run["costs"].items():
        s, energy = found["summary"], found["energy_pj"]
        macro = sum(energy[part] for part in ("adc", "dac", "cells"))
        rows += [
            (
                f"energy of {_article(what).lower()} {what}",
                joules(1e6 * s["energy_uj"]),
                joules(macro),
                joules(1e6 * s["baseline_energy_uj"]),
            ),
            (f"its latency, µs (then one every {number(s['interval_us'])})", number(s["latency_us"]), "", number(s["baseline_latency_us"])),
            ("TOPS/W", number(s["chip_tops_per_watt"]), number(s["macro_tops_per_watt"]), number(s["baseline_tops_per_watt"])),
        ]
        if s["segments"] > 1 and "device_writes" in s:  # which older records do not have
            worn = "" if s["worn_after"] is None else f" (which wear them out after {number(s['worn_after'])} of them)"
            rows.append((f"writes of devices in {_article(what).lower()} {what}{worn}", count(s["device_writes"]), "", ""))
        if what == "prompt" and run["context"]:
            each = [joules(v / run["context"]) for v in (1e6 * s["energy_uj"], macro, 1e6 * s["baseline_energy_uj"])]
            rows.append((f"energy of a token of the prompt ({run['context']})", *each))
    if rows:
        s, area = found["summary"], found["area"]
        macro = sum(area[part] for part in ("cells", "adc", "dac")) * 1e-6
        rows.append(("area, mm²", number(s["area_mm2"]), number(macro), number(s["baseline_area_mm2"])))
        rows.append(("multiplications on tiles", percent(s["analog_share"]), "", ""))
        turns = f", in {s['segments']} turns" if s["segments"] > 1 else ""
        rows += [("tiles", f"{s['tiles']:,}{turns}", "", ""), ("of their cells in use", percent(s["utilisation"]), "", "")]
    caption = "What an inference costs; a macro is arrays and converters alone"
    return Table(caption, ("", "chip", "its macros", "digital int8"), tuple(rows), frozenset((1, 2, 3)))


def layer_table(run: Run, most: int | None = None) -> Table:
    """Layers of the last kind of inference, as they run; with `most`, those that take the most energy."""
    if not run["costs"]:
        return Table("", (), ())
    what, found = list(run["costs"].items())[-1]
    layers = found["layers"]
    shown = layers if most is None or len(layers) <= most else sorted(layers, key=lambda layer: -sum(layer["energy"].values()))[:most]
    rows, (name, scale) = [], unit(max(sum(layer["energy"].values()) for layer in layers))
    for layer in shown:
        total = sum(layer["energy"].values())
        tiles = f"{layer['tiles']}" + (f" x {layer['replicas']}" if layer["replicas"] > 1 else "") if layer["tiles"] else ""
        rows.append(
            (
                layer["name"] or "the model",
                layer["where"],
                tiles,
                percent(layer["utilisation"]) if layer["tiles"] else "",
                number(layer["macs"] * 1e-6),
                number(total * scale),
                percent(layer["energy"]["adc"] / total) if total and layer["tiles"] else "",
                number(1000 * total / layer["macs"]) if layer["macs"] else "",
                number(layer["latency_ns"] * 1e-3),
                number(layer["baseline_pj"] * scale),
            )
        )
    rest = "" if len(shown) == len(layers) else f"; the {len(shown)} of {len(layers)} that take the most energy"
    header = ("layer", "where", "tiles", "in use", "MMAC", name, "of it ADC", "fJ/MAC", "µs", f"digital {name}")
    return Table(f"{_article(what)} {what}, layer by layer{rest}", header, tuple(rows), frozenset(range(2, 10)))


def digital_table(run: Run) -> Table:
    """What stayed digital."""
    rows = tuple((name, reason) for name, reason in run["digital"].items())
    return Table("Weighted modules that stay digital", ("module", "why"), rows)


def front_table(run: Run) -> Table:
    """The designs that nothing beats, by energy."""
    found = run["exploration"]
    if not found:
        return Table("", (), ())
    title = run["metrics"][0]["title"] if run["metrics"] else "quality"
    front = sorted((d for d in found["designs"] if d["number"] in found["front"]), key=lambda d: d["energy_pj"])
    paths = list(dict.fromkeys(path for d in front for path in d["choices"]))
    name, scale = unit(max((d["energy_pj"] for d in front), default=1e6))
    header = ("mark", *paths, title, name, "mm²", "µs")
    rows = []
    for mark, d in enumerate(front, 1):
        figures = (
            number(found["sign"] * d["quality"]),
            number(d["energy_pj"] * scale),
            number(d["area_um2"] * 1e-6),
            number(d["latency_ns"] * 1e-3),
        )
        rows.append((str(mark), *(choice(d["choices"].get(path)) for path in paths), *figures))
    caption = "The Pareto front: no other design is as good in everything and better in something"
    return Table(caption, header, tuple(rows), frozenset(range(len(paths) + 1, len(header))))


def refused_table(run: Run) -> Table:
    """Designs that make no chip, or none that the network fits on."""
    refused = run["exploration"]["refused"] if run["exploration"] else []
    rows = tuple((", ".join(f"{path} {choice(v)}" for path, v in r["choices"].items()), r["reason"]) for r in refused)
    return Table("Designs that were refused", ("design", "why"), rows)


def choice(value: Any) -> str:
    """A value of a field, parts of a chip by their sizes.

    >>> choice("Array(rows=128, columns=256)"), choice(8), choice("Differential(scale='column')")
    ('128 x 256', '8', 'Differential(column)')
    """
    text = str(value)
    if text.startswith("Array("):
        return " x ".join(part.partition("=")[2] for part in text[6:-1].split(", "))
    return text.replace("scale=", "").replace("'", "") if "(" in text else text


def derived_table(run: Run) -> Table:
    """What follows from the chip's description."""
    return Table("What follows from it", ("", ""), tuple(run["derived"].items()))


def provenance(run: Run) -> list[Table]:
    """Model, machine and time."""
    source, machine = run["source"], run["environment"]
    model = (("model", label(run)), ("architecture", str(source.get("architecture", ""))), ("parameters", count(source.get("parameters"))))
    took = tuple((phase, duration(seconds)) for phase, seconds in run["seconds"].items())
    versions = machine.get("versions", {})
    told = (
        ("lessen", str(machine.get("lessen", ""))),
        *((name, str(versions[name])) for name in ("torch", "transformers") if name in versions),
        ("processor", str(machine.get("processor", ""))),
        ("threads", str(machine.get("threads", ""))),
        ("seed", str(machine.get("seed"))),
    )
    return [Table("Model and time", ("", ""), (*model, *took)), Table("Machine", ("", ""), told)]


def tables(run: Run) -> list[Table]:
    """What a terminal shows."""
    found = [*quality_tables(run), front_table(run), refused_table(run)]
    found += [layer_table(run, None if run["kind"] == "cost" else 0)] if run["kind"] == "cost" else []
    found += [cost_table(run)] if run["kind"] != "explore" else []
    return [table for table in found if table.rows]
