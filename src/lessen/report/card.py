"""The model card: `README.md` of the output directory, as model hubs show it."""

import json
import re
from typing import Any

from lessen.core.record import Run
from lessen.report import decisions, facts
from lessen.report.markdown import escaped, fenced, how, notes, section
from lessen.report.text import number, value


def model_card(run: Run) -> str:
    """What the model is, what it cost, how to load it, and where its limits lie; YAML front matter first."""
    name = escaped(facts.label(run))
    parts = [
        _front_matter(run),
        f"# {name}, compressed",
        escaped(facts.headline(run)),
        section("Before and after", [facts.size_table(run), facts.quality_table(run)], "Neither sizes nor quality were measured."),
        section("Speed", [facts.speed_table(run)], "Speed was not measured in this run."),
        escaped(facts.workload(run)),
        "## How to load it\n\n" + "\n\n".join(_loading(run)),
        section("Files", [facts.export_table(run)], "Nothing was exported beside the model directory itself."),
        "## Method\n\n" + _method(run),
        how(run),
        "## Choices made\n\n" + notes(run),
        "## Limits\n\n" + _limits(run),
        "`report.html` shows errors by block, bits by tensor and text samples; `lessen.json` holds every figure.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(run: Run) -> str:
    """YAML between two rules. Values are written as JSON, which YAML contains: nothing in a name can break it."""
    quantized = sorted({f"{entry['bits']}-bit" for entry in run.formats.values() if isinstance(entry, dict) and "bits" in entry})
    pruned = any(record.action in ("keep", "drop") for record in run.records)
    label = str(run.source.get("label") or "")
    data: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": label if re.fullmatch(r"[\w.-]+/[\w.-]+", label) else None,
        "license": run.source.get("license"),
        "tags": ["lessen", "compressed", *(["quantized", *quantized] if quantized else []), *(["pruned"] if pruned else [])],
        "model-index": [{"name": f"{facts.label(run)}, compressed", "results": _results(run)}] if run.quality else None,
    }
    return "\n".join(["---", *(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in data.items() if v is not None), "---"])


def _results(run: Run) -> list[dict[str, Any]]:
    measures = (("perplexity", "Perplexity", "ppl"), ("kl-divergence", "KL to the original, nats per token", "kld_mean"))
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": text, "type": "text"},
            "metrics": [{"type": kind, "name": name, "value": row[key]} for kind, name, key in measures if row.get(key) is not None],
        }
        for text, row in run.quality.items()
    ]


def _loading(run: Run) -> list[str]:
    """One recipe for each runtime that the run wrote for."""
    by_format = {str(row.get("format")): row for row in run.exports}
    texts = []
    if not by_format or "huggingface" in by_format:
        load = 'model = AutoModelForCausalLM.from_pretrained(".")'
        if any(record.action == "keep" for record in run.records):
            texts.append('If widths differ from layer to layer, use `lessen.load(".")`; with equal widths transformers loads it unaided.')
        code = f'from transformers import AutoModelForCausalLM, AutoTokenizer\n\n{load}\ntokenizer = AutoTokenizer.from_pretrained(".")'
        needs = " (`pip install transformers compressed-tensors`)" if run.formats else ""
        texts.insert(0, f"**transformers**{needs}, in this directory:\n\n{fenced(code, 'python')}")
    if row := by_format.get("gguf"):
        command = f'llama-cli -m {row.get("path")} -p "Once upon a time"'
        texts.append(f"**llama.cpp**:\n\n{fenced(command, 'sh')}")
    if row := by_format.get("onnx"):
        code = (
            f'import onnxruntime_genai as og\n\nmodel = og.Model("{row.get("path")}")\ntokenizer = og.Tokenizer(model)\n'
            "params = og.GeneratorParams(model)\nparams.set_search_options(max_length=200)\ngenerator = og.Generator(model, params)\n"
            'generator.append_tokens(tokenizer.encode("Once upon a time"))\n'
            "while not generator.is_done():\n    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))"
        )
        texts.append(f"**ONNX Runtime** (`pip install onnxruntime-genai`):\n\n{fenced(code, 'python')}")
    texts += [f"**{escaped(name)}**: `{row.get('path')}`" for name, row in by_format.items() if name not in ("huggingface", "gguf", "onnx")]
    return texts


def _method(run: Run) -> str:
    kept = ", ".join(f"{name} ({n} unit{'s' * (n != 1)})" for name, n in decisions.method_shares(run)) or "nothing was changed"
    text = run.calibration.get("source")
    data = f"Calibration text: {text}, {value(run.calibration.get('tokens'))} tokens." if text else "No calibration text was used."
    apart = " None of it is in the evaluation text; the run checks by hash." if text and run.quality else ""
    return f"{escaped(kept)}. {escaped(data)}{apart}"


def _limits(run: Run) -> str:
    """What the figures do not say."""
    lines = ["What the original model gets wrong, this one gets wrong too; its licence and its intended use apply."]
    if run.quality:
        texts = f"{len(run.quality)} text{'s' * (len(run.quality) != 1)}: {', '.join(run.quality)}"
        lines.append(f"Quality was measured on {texts}. Other languages and tasks were not.")
    else:
        lines.append("Quality was not measured: compare it with the original on your own text before use.")
    worst = max(run.quality.items(), key=lambda item: item[1].get("kld_mean") or 0, default=None)
    if worst and worst[1].get("kld_mean") is not None:
        lines.append(f"The largest distance was {facts.where(run, worst[0])}: {number(worst[1]['kld_mean'])} nats per token.")
    if run.speed:
        processor = run.environment.get("processor") or "one machine"
        lines.append(f"Speeds hold for {processor} with the batch and threads stated above.")
    return "\n".join(f"- {escaped(line)}" for line in lines)
