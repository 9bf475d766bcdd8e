"""Tasks in processes of their own, so that each one's time and memory are its own: python -m benchmarks.worker TASK JSON.

The last line of stdout is the answer, one JSON object.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def make(arguments: Row) -> Row:
    """Write a random model: {path, sizes}."""
    from benchmarks import tiny

    tiny.directory(Path(arguments["path"]), **arguments["sizes"])
    return {}


def imports(_: Row) -> Row:
    """What `compress` needs before it does anything: its peak is the floor of every other."""
    import transformers  # noqa: F401

    import lessen

    lessen.compress  # noqa: B018
    return {}


def compress(arguments: Row) -> Row:
    """The whole job without its measurements: {path, out, options}."""
    import lessen

    run = lessen.compress(arguments["path"], arguments["out"], evaluate=False, **arguments["options"])
    return {"sizes": run.sizes}


def quantize(arguments: Row) -> Row:
    """Decide for a float variant: {smoke, variant, method, work}; method "default" is lessen's recipe. The edits stay in `work`."""
    result, records = _planned(arguments)
    quantized = [q for name in result.names if (q := result.quantized(name)) is not None]
    sizes = [(q.codes.values.numel(), q.format.bits_per_weight(tuple(q.codes.values.shape))) for q in quantized]
    weights = sum(count for count, _ in sizes)
    chosen: dict[str, int] = {}
    for record in records:
        if record.block is not None:
            chosen[record.method] = chosen.get(record.method, 0) + 1
    return {"bpw": round(sum(count * bits for count, bits in sizes) / weights, 4), "weights": weights, "chosen": chosen}


def score(arguments: Row) -> Row:
    """Quality of what `quantize` decided; the same arguments."""
    from benchmarks import scoring
    from benchmarks.material import material

    result, _ = _planned(arguments)
    return scoring.score(result, arguments["variant"], material(arguments["smoke"]))


def score_directory(arguments: Row) -> Row:
    """Quality of a directory that stock transformers opens: {smoke, variant, path}."""
    from transformers import AutoModelForCausalLM

    from benchmarks import scoring
    from benchmarks.material import material

    model = AutoModelForCausalLM.from_pretrained(arguments["path"], dtype="float32").eval()
    return scoring.score(model, arguments["variant"], material(arguments["smoke"]))


def score_file(arguments: Row) -> Row:
    """Quality of a model that lessen opens (a GGUF file, a directory): {smoke, variant, path}."""
    from benchmarks import scoring
    from benchmarks.material import material

    return scoring.score(arguments["path"], arguments["variant"], material(arguments["smoke"]))


def proof(arguments: Row) -> Row:
    """That a variant is the shipped model off its grid, and its noise floor: {smoke, variant}."""
    from benchmarks import scoring, variants
    from benchmarks.material import EVALUATION, material
    from lessen.evaluate.language import evaluate
    from lessen.models import open_checkpoint

    found = material(arguments["smoke"])
    row = variants.proof(
        open_checkpoint(found.model("shipped")), open_checkpoint(found.model(arguments["variant"])), found.windows(*EVALUATION)
    )
    figures = evaluate(found.model(arguments["variant"]), None, found.windows(*EVALUATION))
    return row | scoring.noise(arguments["variant"], found) | {f"{name}_ppl": figures[name]["ppl"] for name in figures}


def export(arguments: Row) -> Row:
    """Decide a recipe and write exports: {smoke, variant, method (or a list), work, out, formats}."""
    from lessen.export import export

    result, _ = _planned(arguments)
    rows = []
    for name in arguments["formats"]:
        path = Path(arguments["out"]) / PLACES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.append(export(result, path, name))
    return {"exports": [{key: row[key] for key in ("format", "codes_equal", "size_bytes")} for row in rows]}


def llama_cpp(arguments: Row) -> Row:
    """Give a GGUF file llama.cpp's own codes of a float variant: {smoke, variant, path, guided, method, work, written}.

    Guided, its importance matrix is taken over the very windows on which our method with these arguments calibrates, those that the
    model writes included.
    """
    from benchmarks.material import material
    from benchmarks.peers import llama_cpp
    from lessen.models import open_checkpoint

    found = material(arguments["smoke"])
    folder = found.model(arguments["variant"])
    source = open_checkpoint(folder)
    text = _job(arguments).text if arguments["guided"] else None
    guide = {} if text is None else llama_cpp.importance(folder, text.calibration)
    heads = {"q_proj": source.config["num_attention_heads"], "k_proj": source.config["num_key_value_heads"]}
    llama_cpp.requantize(Path(arguments["path"]), source, source.config["num_hidden_layers"], heads, guide)
    return {}


def _planned(arguments: Row) -> Any:
    """(checkpoint as it will be, records) of a plan; what `work` already holds is not decided again."""
    plan = _job(arguments).plan(Path(arguments["work"]))
    return plan.result, plan.records


def _job(arguments: Row) -> Any:
    """Model, recipe and text that the arguments of a task stand for: the same for all tasks, and what the model writes kept in `work`."""
    import torch

    from benchmarks.material import material
    from lessen import job, recipe

    found = material(arguments["smoke"])
    default = arguments["method"] == "default"
    whole = isinstance(arguments["method"], list)  # a recipe, tables included
    methods: Any = None if default else recipe.from_json(arguments["method"] if whole else [arguments["method"]])
    blind = methods is not None and not any(method.needs or hasattr(method, "candidates") for method in methods)
    windows = found.windows("calibration", "heldout")
    # The last ninth is held out by lessen: just the windows of that name. A method that looks at no data is not made to walk over it.
    text = None if blind else torch.cat([windows["calibration"], windows["heldout"]])
    written = arguments.get("written")
    request = job.Request(recipe=methods, calibration=text, embeddings=default or whole, written=written)
    return job.prepare(job.settled(found.model(arguments["variant"]), request), request, Path(arguments["work"]))


PLACES = {"gguf": "gguf/model.gguf", "onnx": "onnx"}


def analog_memory(arguments: Row) -> Row:
    """Load SmolLM2, map it on tiles if asked to, program it at two times and score text: {smoke, map}. Peaks in MB of this process.

    What Python and its packages take is measured after a tiny model of the same class was loaded, mapped and run.
    """
    import resource

    import torch

    from benchmarks.analog_speed import BASE
    from benchmarks.material import material
    from lessen.analog.mapping import map
    from lessen.models import load

    def run(smoke: bool) -> list[float]:
        found = material(smoke)
        windows = found.windows("calibration", "near")
        model = load(found.model("shipped")).eval()
        text = windows["near"][:1, :64]
        mapped = map(model, BASE, calibration=[windows["calibration"][:1, :128]], store=torch.float16) if arguments["map"] else None
        if mapped is not None:
            analog, whole = mapped.weights
            answer["weights_on_tiles"] = round(analog / whole, 4)
        answer["float32_mb"] = round(sum(p.numel() for p in model.parameters()) * 4 / 2**20, 1)
        losses = []
        for seconds in (0.0, 86400.0) if mapped is not None else (0.0,):
            net = model if mapped is None else mapped.program(seed=0, seconds=seconds).model
            with torch.no_grad():
                losses.append(float(net(text, labels=text).loss))
        return losses

    def peak() -> float:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)

    torch.set_num_threads(1)
    answer: Row = {}
    run(True)
    answer["imports_mb"] = peak()
    answer["losses"] = run(arguments["smoke"])
    return answer | {"peak_mb": peak()}


TASKS: dict[str, Callable[[Row], Row]] = {
    task.__name__: task
    for task in (make, imports, compress, quantize, score, score_directory, score_file, proof, export, llama_cpp, analog_memory)
}


def main() -> None:
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)  # of peers' packages; not ours to mend
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
