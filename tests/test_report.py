"""The views of a run: every figure comes from the run, everything is escaped, nothing is needed from outside."""

import copy
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lessen.core.record import Record, Run
from lessen.report import html, markdown, model_card, plain, summary
from lessen.report.plots import draw
from lessen.report.text import number, percent, size
from tests.report_fixture import HOSTILE, make_run

VOID = {"meta", "link", "br", "hr", "img", "input"}
VIEWS = {"html": html, "markdown": markdown, "card": model_card, "plain": plain}
SOME = {"source", "recipe", "environment", "calibration", "records", "sizes", "quality", "speed", "exports", "samples", "seconds", "notes"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, key: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(key)) is not None]


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run()


@pytest.fixture(scope="module")
def page(run) -> str:
    return html(run)


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes most of the time, and is tested by itself."""
    monkeypatch.setattr("lessen.report.plots.draw", lambda run: dict.fromkeys(("quality", "error", "bits")))


def figures(run: Run) -> list[str]:
    """Numbers that every long view has to show, as people read them."""
    shown = [size(part["size_bytes"]) for part in run.sizes.values()]
    for row in run.quality.values():
        shown += [number(row[key]) for key in ("ppl", "ppl_reference", "kld_mean", "kld_median", "kld_p90", "kld_noise")]
        shown.append(percent(row["top1"]))
    shown += [number(row[key]) for row in run.speed for key in ("decode_tps", "prefill_tps")]
    shown += [number(row[key]) for row in run.exports for key in ("kld_mean", "logits_max_error")]
    return shown + [size(row[key]) for row in run.exports for key in ("size_bytes", "weights_bytes")]


@pytest.mark.parametrize("view", ["html", "markdown", "card"])
def test_every_figure_of_the_run_is_shown(run, page, view):
    text = "".join(Page(page).text) if view == "html" else VIEWS[view](run)
    assert [figure for figure in figures(run) if figure not in text] == []


@pytest.mark.parametrize("view", VIEWS)
def test_figures_follow_the_run(view, no_plots):
    run, other = make_run(blocks=1), make_run(blocks=1)
    other.quality["python docs (near)"]["kld_mean"] = 0.4567
    other.sizes["after"]["size_bytes"] = 12_300_000
    other.speed[1]["decode_tps"] = 987.0
    before, after = VIEWS[view](run), VIEWS[view](other)
    for figure in ("0.457", "12.3 MB", "987"):
        assert figure in after and figure not in before


def test_page_is_well_formed_and_labelled(page):
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert tags.count("svg") == tags.count("desc") == 6  # three plots, wide and narrow
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    wanted = {ref for value in parsed.all("aria-labelledby") for ref in value.split()}
    wanted |= {value[1:] for key in ("href", "xlink:href") for value in parsed.all(key) if value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(ids)


def test_page_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert all(value.startswith(("#", "data:")) for key in ("href", "src", "xlink:href", "action") for value in parsed.all(key))
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_special_characters_are_text(run, page):
    parsed = Page(page)
    assert HOSTILE in "".join(parsed.text)
    assert "<script" not in page and "<b>bold" not in page
    assert "<script" not in re.sub(r"^(`{3,}).*?^\1$", "", markdown(run), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("view", ["markdown", "card"])
def test_tables_keep_their_columns(run, view):
    noisy = copy.deepcopy(run)
    noisy.quality = {f"{name} | {HOSTILE}": row for name, row in noisy.quality.items()}
    tables = re.findall(r"(?:^\|.*\|\n)+", VIEWS[view](noisy), flags=re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("missing", sorted(SOME))
def test_any_part_may_be_missing(run, view, missing, no_plots):
    empty = type(getattr(run, missing))()
    assert VIEWS[view](replace(make_run(blocks=2), **{missing: empty}))


@pytest.mark.parametrize(("missing", "left"), [("quality", 2), ("sizes", 3), ("records", 1), ("exports", 3), ("source", 3)])
def test_plots_are_drawn_from_what_there_is(missing, left):
    run = make_run(blocks=2)
    drawn = draw(replace(run, **{missing: type(getattr(run, missing))()}))
    assert sum(plot is not None for plot in drawn.values()) == left


@pytest.mark.parametrize("view", ["html", "markdown", "card"])
def test_what_was_not_measured_is_said(view):
    text = VIEWS[view](Run())
    for sentence in ("Speed was not measured in this run.", "Nothing was exported"):
        assert sentence in text
    if view != "card":
        assert "Quality was not measured in this run." in text and "No text was sampled in this run." in text


def test_page_without_matplotlib_keeps_tables_and_says_so(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = html(run)
    assert "<svg" not in text and "lessen[report]" in Page(text).text[-1] + "".join(Page(text).text)
    assert number(run.quality["python docs (near)"]["kld_mean"]) in text


def test_views_are_pure(tmp_path: Path):
    run = make_run(blocks=2)
    path = tmp_path / "lessen.json"
    run.save(path)
    assert html(Run.load(path)) == html(run)
    assert run == make_run(blocks=2)


def test_pruned_and_failed_parts_are_told():
    records = [
        Record(0, "model.layers.0.mlp", "FLAP(ratio=0.25)", "keep", (1536,), (1152,), 0.0, reason="384 channels removed"),
        Record(1, "model.layers.1", "BlockInfluence(ratio=0.1)", "drop", (1,), (0,), 0.0, reason="layer removed"),
        Record(2, "model.layers.2.mlp.up_proj", "RTN(bits=4)", "skip", (7, 5), (7, 5), 32.0, reason="5 inputs <odd>"),
    ]
    failed = {"runtime": "llama.cpp", "model": "gguf", "reason": "xllamacpp is not installed"}
    export = {
        "format": "gguf",
        "path": "gguf/model.gguf",
        "size_bytes": 5,
        "codes_equal": True,
        "runtime": None,
        "runtime_skipped": "no llama",
    }
    for view in (html, markdown):
        text = view(Run(records=records, speed=[failed], exports=[export]))
        for part in ("1,536 → 1,152", "layer removed", "5 inputs &lt;odd", "xllamacpp is not installed", "not opened: no llama"):
            assert part in text
    assert "lessen.load" in model_card(Run(records=records))


def test_many_blocks_methods_and_lossless_runs_are_drawn():
    run = make_run(blocks=81)
    run.quality = {"one": {"kld_mean": 0.0, "ppl": 3.0, "ppl_reference": 3.0}}
    run.records = [
        replace(r, method="GPTQ(bits=4, group=64, correction=0.5)") if r.block and r.block % 2 and "GPTQ" in r.method else r
        for r in run.records
    ]
    text = html(run)
    assert "GPTQ correction=0.5, kept" in text and text.count("<svg") == 6


@pytest.mark.parametrize("view", VIEWS)
def test_near_and_far_are_both_told(run, view):
    text = "".join(Page(html(run)).text) if view == "html" else VIEWS[view](run)
    assert "0.0612 nats per token on text near the calibration text" in text and "0.0893 on text far from it" in text


def test_candidates_are_compared_without_what_they_inherit(run):
    from lessen.report.decisions import candidate_table

    rows = {row[0]: row for row in candidate_table(run).rows}
    assert list(rows) == ["RTN", "AWQ", "GPTQ"]
    assert [rows[name][1] for name in rows] == ["0 of 30", "3 of 30", "27 of 30"]
    assert rows["GPTQ"][4] == "1.00 ×" and rows["RTN"][4].startswith("2.")
    old = replace(run, records=[replace(r, own={}) for r in run.records])
    assert {row[4] for row in candidate_table(old).rows} == {"–"}, "a record that does not know says so"
    assert "inherit" not in markdown(replace(run, records=[]))


def test_the_fingerprint_of_the_calibration_text_is_for_programs(run):
    marked = replace(run, calibration={**run.calibration, "fingerprint": {"words": 16, "every": 8, "hashes": "c0ffee" * 99}})
    assert all("c0ffee" not in draw(marked) for draw in VIEWS.values())


def test_records_without_errors_are_told():
    run = make_run(blocks=2)
    run.records = [replace(r, error=None, candidates={}) for r in run.records]
    assert "No error was measured per layer in this run." in html(run)


def test_front_matter_is_yaml_whatever_the_names(run):
    hostile = copy.deepcopy(run)
    hostile.source["label"] = 'a/b: "c"\n--- # {x}'
    front = model_card(hostile).split("\n---\n")[0]
    data = yaml.safe_load(front)
    assert data["library_name"] == "transformers" and {"lessen", "4-bit", "8-bit"} <= set(data["tags"])
    results = data["model-index"][0]["results"]
    assert [row["metrics"][0]["value"] for row in results] == [row["ppl"] for row in run.quality.values()]
    assert "base_model" not in data
    hostile.source["label"] = "owner/name"
    assert yaml.safe_load(model_card(hostile).split("\n---\n")[0])["base_model"] == "owner/name"


def test_card_explains_how_to_load_what_was_exported_and_nothing_else(run):
    text = model_card(run)
    assert "from_pretrained" in text and "llama-cli -m gguf/model.gguf" in text and 'og.Model("onnx")' in text
    only = model_card(replace(run, exports=run.exports[:1]))
    assert "from_pretrained" in only and "llama-cli" not in only and "og.Model" not in only


def test_card_says_nothing_of_the_machines_folders():
    assert "/private/someone" not in model_card(Run(source={"label": "/private/someone/models/tiny"}))


def test_terminal_table_fits_and_takes_text_literally(run):
    noisy = copy.deepcopy(run)
    noisy.source["label"] = "[bold]name"
    console = Console(width=100, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(summary(noisy))
    text = capture.get()
    assert "[bold]name" in text and max(map(len, text.splitlines())) <= 100
    for shown in (text, plain(noisy)):
        assert all(figure in shown for figure in ("87.4 MB", "5.20", "0.0612", "87.3 %", "109 tok/s", "gguf/model.gguf"))


def test_headline_is_one_sentence_from_whatever_is_known(run):
    from lessen.report.facts import headline

    assert headline(run) == (
        "smollm2-135m went from 538 MB to 87.4 MB, 6.16 times smaller; it differs from the original by 0.0612 nats per token on "
        "text near the calibration text and 0.0893 on text far from it, and decodes 7.76 times as fast "
        "in onnxruntime-genai as the original in torch float32."
    )
    loaded = [{**row, "machine_load": 40.5} for row in run.speed]
    crowded = replace(run, speed=loaded, environment={**run.environment, "cores": 2})
    assert headline(crowded).endswith("in torch float32 (timed on a busy machine).")
    assert "busy" not in headline(replace(crowded, environment={"cores": 64}))
    quality = {name: {key: figure for key, figure in row.items() if key != "nearness"} for name, row in run.quality.items()}
    assert "0.0612 nats per token on python docs (near) and 0.0893 on letters" in headline(replace(run, quality=quality))
    many = {f"{name} {i}": row for i in (1, 2) for name, row in quality.items()}
    assert "by 0.0752 nats per token, mean of 4 texts (perplexity 33.9 instead of 31.8)" in headline(replace(run, quality=many))
    one = {"mine": quality["python docs (near)"]}
    assert "by 0.0612 nats per token (perplexity 27.9 instead of 26.5)" in headline(replace(run, quality=one))
    assert headline(replace(run, quality={}, speed=[])) == "smollm2-135m went from 538 MB to 87.4 MB, 6.16 times smaller."
    unequal = [{**run.speed[0], "threads": 2}, *run.speed[1:]]
    assert "decodes" not in headline(replace(run, speed=unequal))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_colours_reach_aa_contrast(page, scheme):
    """WCAG 2: 4.5 to 1 for text of ordinary size."""
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", re.findall(r":root \{([^}]*)\}", page)[scheme]))
    for text in ("ink", "muted", "accent"):
        for ground in ("paper", "raised"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_record_is_plain_json(run, tmp_path: Path):
    run.save(tmp_path / "lessen.json")
    assert json.loads((tmp_path / "lessen.json").read_text())["schema_version"] == run.schema_version


def test_marks_of_the_plot_are_files_and_say_what_was_not_measured(run):
    from lessen.report.plots import _points

    points = {p.name: p for p in _points(run)}
    files = {row["format"]: row["weights_bytes"] for row in run.exports}
    assert points["result"].x == files["huggingface"] != run.sizes["after"]["size_bytes"]
    assert points["source"].x == run.sizes["before"]["size_bytes"], "weights alone, as everywhere in the plot"
    assert {name for name, p in points.items() if p.kind == "export"} == {"gguf (KL not measured)", "onnx (KL not measured)"}
    assert points["gguf (KL not measured)"].x == files["gguf"]


def test_a_record_that_knows_whole_folders_only_does_not_mix_them_with_weights(run):
    from lessen.report.facts import export_table
    from lessen.report.plots import _points

    old = replace(run, exports=[{k: v for k, v in row.items() if k != "weights_bytes"} for row in run.exports])
    points = {p.name: p for p in _points(old)}
    assert points["result"].x == run.sizes["after"]["size_bytes"]
    assert not [name for name in points if "gguf" in name or "onnx" in name]
    assert [row[2] for row in export_table(old).rows] == ["–"] * 3


def test_the_terminal_tells_weights_and_all_files_apart(run):
    assert re.search(r"huggingface +87\.9 MB +\., 90\.9 MB with all files", plain(run))
