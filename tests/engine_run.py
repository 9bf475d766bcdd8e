"""A run to be killed by test_engine: six blocks, a selector, the same bits every time."""

import sys
from pathlib import Path

import torch

from lessen.methods import GPTQ, RTN, Select
from tests.test_engine import checkpoint, planned, text

if __name__ == "__main__":
    torch.set_num_threads(1)
    methods = [RTN(8, 16, scale="mse", on="embeddings"), Select((GPTQ(3, 16), GPTQ(3, 16, correction=0.5)))]
    planned(Path(sys.argv[1]), methods, checkpoint(num_hidden_layers=6), given=text(20, 64))
