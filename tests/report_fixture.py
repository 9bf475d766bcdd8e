"""A run as `lessen compress` would record it for a 30-block model, made up but with the proportions of a real one."""

import copy
import math
import random
from typing import Any

from lessen.core.record import Record, Run

ROLES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
TABLE = (49152, 576)
HOSTILE = "<script>alert('x')</script> & \"quotes\" | pipe `tick`"


def records(blocks: int = 30) -> list[Record]:
    """The embedding, and one per linear; the candidates of a block were judged on the output of the whole block."""
    rng = random.Random(7)
    rows = [Record(None, "model.embed_tokens.weight", "RTN(bits=8, group=64, on='embeddings')", "quantize", TABLE, TABLE, 8.25, None, 1.9)]
    for block in range(blocks):
        level = 0.002 * math.exp(0.03 * block + rng.gauss(0, 0.1)) * (4 if block == blocks - 1 else 1)
        tried = {"RTN": level * rng.uniform(2.4, 2.9), "AWQ": level * rng.uniform(1.1, 1.8), "GPTQ": level}
        if block % 9 == 4:
            tried["AWQ"] = level * 0.91
        drift = 0.004 * block  # inherited from the blocks before: the same for every candidate
        own = {f"{name}(bits=4, group=64)": error for name, error in tried.items()}
        candidates = {name: error + drift for name, error in own.items()}
        best = min(candidates, key=lambda name: candidates[name])
        if best.startswith("AWQ"):
            norm = f"model.layers.{block}.input_layernorm.weight"
            rows.append(Record(block, norm, best, "replace", (576,), (576,), 32.0, candidates[best], 0.1, "", candidates, own))
        for i, (name, shape) in enumerate(ROLES.items()):
            bits = 8.25 if name == "mlp.down_proj" and block in (0, blocks - 1) else 4.25
            error, seconds = level * (1.4 + i / 3) * rng.uniform(0.8, 1.2), rng.uniform(0.2, 1.4)
            unit = f"model.layers.{block}.{name}.weight"
            rows.append(Record(block, unit, best, "quantize", shape, shape, bits, error, seconds, "", candidates, own))
    return rows


QUALITY = {
    "python docs (near)": {
        "ppl": 27.94,
        "ppl_reference": 26.51,
        "kld_mean": 0.0612,
        "kld_median": 0.0231,
        "kld_p90": 0.151,
        "top1": 0.8734,
        "kld_noise": 0.00041,
        "nearness": "near",
        "tokens": 8176,
        "candidates": [{"name": "RTN, 4 bit", "size_bytes": 78_100_000, "kld_mean": 0.214}],
    },
    "letters & fiction (far)": {
        "ppl": 41.02,
        "ppl_reference": 38.06,
        "kld_mean": 0.0893,
        "kld_median": 0.0340,
        "kld_p90": 0.224,
        "top1": 0.8467,
        "kld_noise": 0.00052,
        "nearness": "far",
        "tokens": 4088,
        "candidates": [{"name": "RTN, 4 bit", "size_bytes": 78_100_000, "kld_mean": 0.263}],
    },
}
TIMED = [
    ("torch float32", "source", 330.2, 14.1),
    ("llama.cpp", "gguf", 322.4, 106.3),
    ("onnxruntime-genai", "onnx", 292.0, 109.4),
]
WRITTEN = [
    ("huggingface", ".", 90_900_000, 87_900_000, True, 2.1e-9, 3.1e-5, "transformers 5.23.0"),
    ("gguf", "gguf/model.gguf", 91_900_000, 90_200_000, True, 3.4e-4, 0.112, "llama.cpp (xllamacpp 2026.1)"),
    ("onnx", "onnx", 98_100_000, 94_700_000, True, 0.0021, 0.31, "onnxruntime 1.26.0"),
]
_CAPITAL = " Paris, and the river that runs through it is "
_BLUE = "The sky is blue because "
SAMPLES = [
    {
        "prompt": "The _CAPITAL of France is",
        "before": f"{_CAPITAL}the Seine.",
        "after": f"{_CAPITAL}called the Seine river, which is long.",
    },
    {
        "prompt": HOSTILE,
        "before": "\n\nif a < b && c > d:\n    return '<b>bold</b>'  # & so on",
        "after": "\n\nif a < b && c > d:\n    pass",
    },
    {
        "prompt": "https://example.org/" + "a-very-long-path-without-any-break/" * 8,
        "before": f"{_BLUE}air scatters short waves of light more than long ones, which Rayleigh showed. " * 3 + "x" * 240,
        "after": f"{_BLUE}of the air, and the air is blue because of the sky. " * 4 + "x" * 180,
    },
]


def speed_rows() -> list[dict[str, Any]]:
    """What was timed."""
    return [
        {
            "runtime": r,
            "model": m,
            "prefill_tps": p,
            "decode_tps": d,
            "batch": 1,
            "threads": 1,
            "prompt_tokens": 256,
            "new_tokens": 64,
            "decode_range": [0.9 * d, 1.1 * d],
            "machine_load": 0.25,
        }
        for r, m, p, d in TIMED
    ]


def exports_rows() -> list[dict[str, Any]]:
    """What was written beside the model."""
    return [
        {
            "format": f,
            "path": p,
            "size_bytes": n,
            "weights_bytes": w,
            "codes_equal": c,
            "kld_mean": k,
            "logits_max_error": e,
            "runtime": r,
            "seconds": 12.5,
        }
        for f, p, n, w, c, k, e, r in WRITTEN
    ]


def make_run(blocks: int = 30) -> Run:
    """Two texts, three exports, three runtimes, three samples with long lines and special characters."""
    return Run(
        source={
            "label": "smollm2-135m",
            "architecture": "LlamaForCausalLM",
            "parameters": 134_515_008,
            "size_bytes": 538_090_408,
            "dtype": "float32",
            "sha256": "3b1f9c" * 10 + "abcd",
        },
        recipe=[
            {"name": "RTN", "bits": 8, "group": 64, "on": "embeddings"},
            {"name": "Select", "candidates": [{"name": name, "bits": 4, "group": 64} for name in ("RTN", "AWQ", "GPTQ")]},
        ],
        formats={
            "model.embed_tokens.weight": {"type": "int", "bits": 8, "group": 64},
            "model.layers.0.mlp.up_proj.weight": {"type": "int", "bits": 4},
        },
        command=f"lessen compress smollm2-135m --to 4bpw --note '{HOSTILE}'",
        environment={
            "versions": {"lessen": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "processor": "AMD EPYC 7B13 <2 cores>",
            "threads": 1,
            "seed": 0,
        },
        calibration={"source": "pydoc_data topics", "tokens": 16384, "sha256": "aa" * 32},
        records=records(blocks),
        sizes={
            "before": {"size_bytes": 538_090_408, "bpw": 32.0, "parameters": 134_515_008, "macs": 134_479_872},
            "after": {"size_bytes": 87_400_000, "bpw": 5.198, "parameters": 134_515_008, "macs": 134_479_872},
        },
        quality=copy.deepcopy(QUALITY),
        speed=speed_rows(),
        exports=exports_rows(),
        samples=copy.deepcopy(SAMPLES),
        seconds={"calibrate": 21.4, "quantize": 184.2, "evaluate": 96.0, "export": 61.3},
        notes=[
            "group size 64: 576 inputs cannot be split into groups of 128",
            "embedding and output head kept at 8 bits: 21 % of the parameters <tied>",
        ],
    )
