"""What every test shares: one thread, no network, and a model small enough to compress in seconds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a red run is a change's doing; `--hypothesis-profile default` searches for others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: two Llama layers of width 64 with random weights, and a tokenizer."""
    from tests.export_fixture import byte_tokenizer, llama

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    model = llama()
    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    byte_tokenizer(384).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text to calibrate on and a text to evaluate on, without a line in common."""
    folder = tmp_path_factory.mktemp("texts")
    calibration, held = folder / "calibration.txt", folder / "held.txt"
    calibration.write_text("\n".join(f"the model number {i} has learned from {i * 7} words of text about weights" for i in range(400)))
    held.write_text("\n".join(f"weights of number {i * 13} were seen by a learned model and {i} of them differ" for i in range(200)))
    return calibration, held
