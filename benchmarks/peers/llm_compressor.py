"""GPTQ as llm-compressor does it, with its defaults. Runs in llm-compressor's environment: MODEL TOKENS OUT BITS GROUP."""

import sys

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
from llmcompressor.modifiers.quantization import GPTQModifier  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_path: str, tokens_path: str, out: str, bits: int, group: int) -> None:
    tokens = load_file(tokens_path)["calibration"]
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    recipe = GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model_path),
        dataset=data,
        recipe=recipe,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
