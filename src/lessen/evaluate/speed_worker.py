"""The other end of `lessen.evaluate.speed`: one runtime in one process, told over stdin when to run.

Protocol: the argument is a JSON object (backend and workload); every line on stdin asks for one run; every answer is one JSON line, the
first after loading. Runtimes print to stdout as they like: the answers have a file descriptor of their own.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

Run = Callable[[list[list[int]]], tuple[float, float]]
"""Prompts -> seconds to the first new token, seconds for the others."""


def torch_run(work: dict[str, Any]) -> Run:
    """A transformers model in float32: one call for the prompt, one call with the cache for every token."""
    import torch

    from lessen.models import load

    torch.set_num_threads(work["threads"])
    model = load(work["path"], dtype=torch.float32)
    steps = work["new_tokens"] - 1

    @torch.inference_mode()
    def run(prompts: list[list[int]]) -> tuple[float, float]:
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(steps):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return first - start, time.perf_counter() - first

    return run


def genai_run(work: dict[str, Any]) -> Run:
    """A folder of ONNX Runtime GenAI. The last appended token is only computed when the next one is asked for."""
    if not (Path(work["path"]) / "genai_config.json").is_file():
        raise FileNotFoundError(f"no genai_config.json in {work['path']}")
    genai = _module("onnxruntime_genai", "onnx")
    config = genai.Config(str(work["path"]))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": work["threads"]}}}}))
    model = genai.Model(config)
    total = work["prompt_tokens"] + work["new_tokens"]

    def run(prompts: list[list[int]]) -> tuple[float, float]:
        import numpy as np

        params = genai.GeneratorParams(model)
        # min_length: an end-of-text token must not end the run.
        params.set_search_options(do_sample=False, batch_size=len(prompts), min_length=total, max_length=total)
        generator = genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(work["new_tokens"] - 1):
            generator.generate_next_token()
        return first - start, time.perf_counter() - first

    return run


def llamacpp_run(work: dict[str, Any]) -> Run:
    """A GGUF file in llama.cpp's server, without HTTP; the times are its own."""
    if work["batch"] != 1:
        raise ValueError("llama.cpp is timed with batch 1 only")
    if not Path(work["path"]).is_file():
        raise FileNotFoundError(f"no file {work['path']}")
    llama = _module("xllamacpp", "llamacpp")
    params = llama.CommonParams()
    params.model.path = str(work["path"])
    params.n_ctx = params.n_batch = work["prompt_tokens"] + work["new_tokens"] + 8
    params.n_parallel = params.n_threads_http = 1
    params.n_gpu_layers, params.cache_ram_mib, params.warmup, params.verbosity = 0, 0, False, -1
    for pool in (params.cpuparams, params.cpuparams_batch):
        pool.n_threads = work["threads"]
    server = llama.Server(params)

    def run(prompts: list[list[int]]) -> tuple[float, float]:
        # `cache_prompt` off: the second run must not find the first one's prompt.
        request = {"prompt": prompts[0], "n_predict": work["new_tokens"], "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(request)
        times = answer.get("timings") if isinstance(answer, dict) else None
        if not times or (times["prompt_n"], times["predicted_n"]) != (len(prompts[0]), work["new_tokens"]):
            raise RuntimeError(f"llama.cpp did not do the work: {json.dumps(times or answer)[:200]}")
        return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3

    return run


RUNNERS: dict[str, tuple[Callable[[dict[str, Any]], Run], str]] = {
    "torch": (torch_run, "torch"),
    "onnxruntime-genai": (genai_run, "onnxruntime-genai"),
    "llama.cpp": (llamacpp_run, "xllamacpp"),
}


def prompts(work: dict[str, Any]) -> list[list[int]]:
    """The same token ids on every machine, no two rows alike."""
    return [[(37 * i + 11 * row) % work["vocab"] for i in range(work["prompt_tokens"])] for row in range(work["batch"])]


def speeds(work: dict[str, Any], prefill_s: float, decode_s: float) -> dict[str, float]:
    """Tokens per second of the whole batch, and the memory of this process.

    >>> figures = speeds({"batch": 2, "prompt_tokens": 10, "new_tokens": 5}, 0.5, 2.0)
    >>> figures["prefill_tps"], figures["decode_tps"]
    (40.0, 4.0)
    """
    tokens = work["batch"] * work["prompt_tokens"], work["batch"] * (work["new_tokens"] - 1)
    return {"prefill_tps": tokens[0] / prefill_s, "decode_tps": tokens[1] / decode_s, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Largest resident memory of this program, in MiB.

    Linux keeps `ru_maxrss` across exec, so there it would be at least that of the process which started this one; VmHWM begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _module(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}); pip install 'lessen[{extra}]'") from error


def _die_with_parent() -> None:
    """A stopped process does not notice that its stdin was closed; Linux can end it when the one who measures is killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Answer until stdin ends."""
    _die_with_parent()
    work = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(data: dict[str, Any]) -> None:
            answers.write(json.dumps(data) + "\n")
            answers.flush()

        try:
            load, package = RUNNERS[work["runtime"]]
            start = time.perf_counter()
            run = load(work)
            answer({"version": version(package), "load_s": time.perf_counter() - start})
            for _ in sys.stdin:
                answer(speeds(work, *run(prompts(work))))
        except Exception as error:  # whatever a runtime throws is the reason why there is no figure
            answer({"reason": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    main()
