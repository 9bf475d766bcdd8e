"""SignRound as AutoRound does it, 50 iterations (its `light` recipe). Runs in AutoRound's environment: MODEL TOKENS OUT BITS GROUP."""

import sys
from typing import Any

from auto_round import AutoRound  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_path: str, tokens_path: str, out: str, bits: int, group: int) -> None:
    tokens = load_file(tokens_path)["calibration"]
    rows: Any = [{"input_ids": row} for row in tokens]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(model_path),
        scheme={"bits": bits, "group_size": group, "sym": True, "data_type": "int", "act_bits": 16},
        dataset=DataLoader(rows, batch_size=1),
        iters=50,
        lr=5e-3,
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        batch_size=8,
        seed=0,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    tuner.quantize_and_save(out, format="fake")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
