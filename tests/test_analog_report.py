"""The page of a run on an analog chip: drawn from the record alone, the same again, and legible in a browser."""

import json
from pathlib import Path
from typing import Any

import pytest

from lessen.report import analog_facts as facts
from lessen.report.analog import html
from tests.report_browser import CHROMIUM, Browser
from tests.test_analog_cli import OURS
from tests.test_cli_runs import call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each kind."""
    from lessen.cli.main import run

    folder = tmp_path_factory.mktemp("analog")
    rest = [*OURS, "pcm-nandakumar", "--quiet", "--out"]
    aged = ["--times", "20s,1y", "--chips", "2"]
    asked = {
        "simulate": aged,
        "cost": [],
        "robust": [*aged, "--method", "RangeSearch", "--method", "HPD(rank=4, targets=['2'])"],
        "explore": ["--vary", "adc.bits=4,8", "array=16,1", "--trials", "4", "--chips", "1"],
    }
    for kind, options in asked.items():
        assert run(["analog", kind, *rest, str(folder / kind), *options]) == 0
    return {kind: folder / kind for kind in asked}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "analog.json").read_text())


@pytest.mark.parametrize("kind", ["simulate", "cost", "robust", "explore"])
def test_the_page_is_drawn_again_from_its_record(kind: str, runs: dict[str, Path], capsys: Any):
    page = (runs[kind] / "report.html").read_text()
    assert html(record(runs[kind])) == page
    (runs[kind] / "report.html").unlink()
    code, out, _ = call(capsys, "report", runs[kind])
    assert (code, out.strip()) == (0, str(runs[kind] / "report.html"))
    assert (runs[kind] / "report.html").read_text() == page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert str(runs[kind].parent) not in facts.label(record(runs[kind]))
    assert call(capsys, "report", runs[kind], "--format", "card")[0] == 2


def test_what_a_page_tells_is_what_was_found(runs: dict[str, Path]):
    page, run = (runs["robust"] / "report.html").read_text(), record(runs["robust"])
    for name in ("quality-wide", "quality-narrow", "energy-wide", "tiles-narrow"):
        assert f'aria-labelledby="{name}-t' in page
    assert "front-wide" not in page and "Pareto" not in page
    before, after = facts.quality_tables(run)
    assert before.rows[0][0] == "digital" and [row[0] for row in before.rows[1:]] == ["20 s", "1 y"]
    assert before.caption.startswith("As mapped") and after.caption.startswith("RangeSearch(")
    summary = run["costs"]["inference"]["summary"]
    shown = {row[0]: row[1:] for row in facts.cost_table(run).rows}
    assert shown["energy of an inference"][0] == facts.joules(1e6 * summary["energy_uj"])
    assert "g_max = 25.0" in page and "- " not in run["notes"][0]
    search = (runs["explore"] / "report.html").read_text()
    assert "front-wide" in search and "Quality over time" not in search


def test_writes_are_told_where_weights_do_not_stay(runs: dict[str, Path]):
    run = record(runs["cost"])
    assert not [row for row in facts.cost_table(run).rows if "writes" in row[0]]
    run["costs"]["inference"]["summary"] |= {"segments": 2, "device_writes": 3e6, "worn_after": 5e4}
    assert ("writes of devices in an inference (which wear them out after 50,000 of them)", "3.00 M", "", "") in facts.cost_table(run).rows
    run["costs"]["inference"]["summary"]["worn_after"] = None
    assert ("writes of devices in an inference", "3.00 M", "", "") in facts.cost_table(run).rows
    del run["costs"]["inference"]["summary"]["device_writes"]  # a record of an earlier version
    assert not [row for row in facts.cost_table(run).rows if "writes" in row[0]]


def test_designs_that_make_no_chip_are_told_with_their_reason(runs: dict[str, Path]):
    run = record(runs["explore"])  # a pair of devices does not lie on one column
    assert {r["choices"]["array"] for r in run["exploration"]["refused"]} == {"Array(rows=1, columns=1)"}
    table = facts.refused_table(run)
    assert len(table.rows) == 2 and "columns enough for one weight" in table.rows[0][1]
    assert len(facts.front_table(run).rows) == len(run["exploration"]["front"]) > 0


def test_energies_have_the_unit_that_reads_best():
    assert [facts.joules(pj) for pj in (0.5, 2500.0, 3.2e6, 4.1e9)] == ["0.500 pJ", "2.50 nJ", "3.20 µJ", "4.10 mJ"]


def test_many_layers_and_tiles_stay_small_on_the_page(runs: dict[str, Path]):
    """A language model has hundreds of layers and thousands of tiles: bars are joined by role, tiles by row."""
    run = record(runs["simulate"])
    (layer,) = [each for each in run["costs"]["inference"]["layers"] if each["name"] == "2"]
    roles = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
    names = [f"model.layers.{i}.{role}" for i in range(40) for role in roles]
    run["costs"]["inference"]["layers"] = [{**layer, "name": name} for name in names]
    run["layers"] = [{**run["layers"][0], "name": name, "tiles": 20} for name in names]
    page = html(run)
    assert "q_proj × 40" in page and "4000 tiles by layer" in page
    assert len(page) < 1_500_000


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_pages_fit_phones_and_desktops(runs: dict[str, Path], tmp_path: Path):
    browser = Browser(tmp_path)
    try:
        for kind, width, scheme in (
            ("robust", 360, "light"),
            ("robust", 1400, "dark"),
            ("explore", 360, "dark"),
            ("explore", 1400, "light"),
        ):
            browser.open((runs[kind] / "report.html").as_uri(), width, 900, scheme)
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
            shown = browser.evaluate("[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width).length")
            assert shown == (3 if kind == "robust" else 1)  # one form of each plot
            said = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
            requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"][1:]
            assert said == [] and not [url for url in requests if not url.startswith("data:")]
    finally:
        browser.close()
