"""python -m benchmarks NAME --json FILE [--smoke]: run one benchmark and write its figures."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import Session, command, environment, result, stop_when_told, write

# name -> (module, what it shows)
BENCHMARKS = {
    "llm_quant": ("benchmarks.llm_quant", "quality, bytes and cost of every quantization method and its peers on SmolLM2"),
    "gguf": ("benchmarks.gguf_quality", "our Q4_0 file against llama.cpp's own, plain and with importance matrix, at the same bytes"),
    "llm_speed": ("benchmarks.llm_speed", "decode and prefill tokens per second: torch, ONNX Runtime, llama.cpp, interleaved"),
    "memory": ("benchmarks.memory", "peak memory of compressing 4, 8 and 16 blocks of one shape"),
    "resume": ("benchmarks.resume", "killed at three random places, the same bits come out"),
    "prune_person_search": ("benchmarks.prune_person_search", "SAMP-style pruning against four rankings on a two-task network"),
    "prune_vlm": ("benchmarks.prune_vlm", "UKMP part by part on project-trained captioners, before and after recovery, over three seeds"),
    "prune_llm": ("benchmarks.prune_llm", "SmolLM2 with 10, 20, 30 % of its parameters gone, compensated and recovered, and its peers"),
    "prune_coverage": ("benchmarks.prune_coverage", "structured pruning of every architecture, against Torch-Pruning"),
    "analog_speed": ("benchmarks.analog_speed", "simulated analog layers and networks against digital ones and other toolkits"),
    "analog_cost": ("benchmarks.analog_cost", "energy, latency and area on analog chips; the Pareto front of a search"),
    "analog_statistics": ("benchmarks.analog_statistics", "simulated devices against their sources and against another toolkit"),
    "analog_quality": ("benchmarks.analog_quality", "networks on chips over time, plain and made robust, over ten chips"),
    "start": ("benchmarks.start", "how long `lessen --help` takes"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "\n".join(f"  {name:10} {about}" for name, (_, about) in BENCHMARKS.items())
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here (finished rows are kept beside it until then)")
    parser.add_argument("--smoke", action="store_true", help="a size that takes seconds, on a random model; figures mean nothing")
    parser.add_argument("--only", metavar="TEXT", help="measure only rows whose key contains this text")
    parser.add_argument("--threads", type=int, default=1, help="threads of every measured process (default 1)")
    parser.add_argument("--again", metavar="TEXT", nargs="?", const="", help="forget finished rows (those whose key contains TEXT) first")
    options = parser.parse_args(arguments)
    side = options.json.with_suffix(".rows.jsonl") if options.json else None
    env = environment(options.threads)
    session = Session(options.name, options.smoke, side, options.only, options.again, options.threads)
    module = import_module(BENCHMARKS[options.name][0])
    rows: list[dict[str, Any]] = [row for row in module.rows(session) if row is not None]
    goals = module.goals(rows)
    data = result(command(options.name, options.smoke), env, rows, goals)
    if options.json:
        write(options.json, data)
    for goal in goals:
        unknown = "not measured" if goal.value == "not measured" else "told"
        verdict = {None: unknown, True: "met", False: "MISSED"}[goal.met]
        print(f"{verdict:12} {goal.name}: {goal.value} (to reach {goal.target})")
    return 0


if __name__ == "__main__":
    stop_when_told()
    sys.exit(main())
