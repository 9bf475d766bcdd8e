"""A run as `lessen compress` would record it for a 30-block model, made up but with the proportions of a real one."""

import math
import random

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
HOSTILE = "<script>alert('x')</script> & \"quotes\" | pipe `tick`"


def records(blocks: int = 30) -> list[Record]:
    """One per linear, with the errors of three candidates, and the embedding."""
    rng = random.Random(7)
    rows = [Record(None, "model.embed_tokens.weight", "RTN(bits=8, group=64)", "quantize", (49152, 576), (49152, 576), 8.25, 3.1e-5, 1.9)]
    for block in range(blocks):
        for i, (name, shape) in enumerate(ROLES.items()):
            base = 0.004 * (1 + i / 3) * math.exp(0.02 * block + rng.gauss(0, 0.12)) * (4 if block == blocks - 1 else 1)
            errors = {"RTN": base * 2.7, "AWQ": base * rng.uniform(1.3, 2.1), "GPTQ": base * rng.uniform(0.85, 1.05)}
            if (block + i) % 9 == 0:
                errors["AWQ"] = errors["GPTQ"] * 0.93
            best = min(errors, key=lambda key: errors[key])
            options = {k: f"{k}(bits=4, group=64)" for k in errors}
            bits = 8.25 if name == "mlp.down_proj" and block in (0, blocks - 1) else 4.25
            rows.append(
                Record(
                    block,
                    f"model.layers.{block}.{name}.weight",
                    options[best],
                    "quantize",
                    shape,
                    shape,
                    bits,
                    errors[best],
                    rng.uniform(0.2, 1.4),
                    "lowest error on held-out text" if best != "GPTQ" else "",
                    {options[k]: v for k, v in errors.items()},
                )
            )
    return rows


def make_run(blocks: int = 30) -> Run:
    """Two texts, three exports, three runtimes, three samples with long lines and special characters."""
    quality = {
        "python docs (near)": {
            "ppl": 27.94, "ppl_reference": 26.51, "kld_mean": 0.0612, "kld_median": 0.0231, "kld_p90": 0.151, "top1": 0.8734, "kld_noise": 0.00041,
            "tokens": 8176, "candidates": [{"name": "RTN, 4 bit", "size_bytes": 78_100_000, "kld_mean": 0.214}],
        },
        "letters & fiction (far)": {
            "ppl": 41.02, "ppl_reference": 38.06, "kld_mean": 0.0893, "kld_median": 0.0340, "kld_p90": 0.224, "top1": 0.8467, "kld_noise": 0.00052,
            "tokens": 4088, "candidates": [{"name": "RTN, 4 bit", "size_bytes": 78_100_000, "kld_mean": 0.263}],
        },
    }  # fmt: skip
    speed = [
        ("torch float32", "source", 330.2, 14.1),
        ("llama.cpp", "gguf-q4_0", 322.4, 106.3),
        ("onnxruntime-genai", "onnx", 292.0, 109.4),
    ]
    exports = [
        ("compressed-tensors", "model.safetensors", 87_400_000, True, 2.1e-9, 3.1e-5, "transformers 5.23.0"),
        ("gguf-q4_0", "gguf/model-q4_0.gguf", 91_900_000, True, 3.4e-4, 0.112, "llama.cpp (xllamacpp 2026.1)"),
        ("onnx", "onnx/model.onnx", 98_100_000, True, 0.0021, 0.31, "onnxruntime 1.26.0"),
    ]
    before = "The capital of France is Paris, and the river that runs through it is the Seine."
    samples = [
        {"prompt": "The capital of France is", "before": f" {before}", "after": " Paris, and the river that runs through it is called the Seine river."},
        {"prompt": HOSTILE, "before": "\n\nif a < b && c > d:\n    return '<b>bold</b>'  # & so on", "after": "\n\nif a < b && c > d:\n    return \"<i>x</i>\""},
        {
            "prompt": "https://example.org/" + "a-very-long-path-without-any-break/" * 8,
            "before": "x" * 240 + "\n" + "A sky is blue because air scatters short waves of light more than long ones, which Rayleigh showed. " * 4,
            "after": "x" * 180 + "\n" + "A sky is blue because of the air, and the air is blue because of the sky. " * 5,
        },
    ]
    return Run(
        source={
            "label": "smollm2-135m", "architecture": "LlamaForCausalLM", "parameters": 134_515_008, "size_bytes": 538_090_408, "dtype": "float32",
            "sha256": "3b1f9c" * 10 + "abcd",
        },
        recipe=[{"method": "GPTQ", "bits": 4, "group": 64, "scale": "mse"}, {"method": "RTN", "bits": 8, "group": 64}],
        command=f"lessen compress smollm2-135m --to 4bpw --note '{HOSTILE}'",
        environment={
            "versions": {"lessen": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}, "processor": "AMD EPYC 7B13 <2 cores>", "threads": 1, "seed": 0,
        },
        calibration={"source": "pydoc_data topics", "tokens": 16384, "sha256": "aa" * 32},
        records=records(blocks),
        sizes={
            "before": {"size_bytes": 538_090_408, "bpw": 32.0, "parameters": 134_515_008, "macs": 134_479_872},
            "after": {"size_bytes": 87_400_000, "bpw": 5.198, "parameters": 134_515_008, "macs": 134_479_872},
        },
        quality=quality,
        speed=[
            {"runtime": r, "model": m, "prefill_tps": p, "decode_tps": d, "batch": 1, "threads": 1, "prompt_tokens": 256, "new_tokens": 64}
            for r, m, p, d in speed
        ],
        exports=[
            {"format": f, "path": p, "size_bytes": n, "codes_equal": c, "kld_mean": k, "logits_max_error": e, "runtime": r, "seconds": 12.5}
            for f, p, n, c, k, e, r in exports
        ],
        samples=samples,
        seconds={"calibrate": 21.4, "quantize": 184.2, "evaluate": 96.0, "export": 61.3},
        notes=["group size 64: 576 inputs cannot be split into groups of 128", "embedding and output head kept at 8 bits: 21 % of the parameters <tied>"],
    )  # fmt: skip
