"""Peak memory of compressing models of 4, 8 and 16 equal blocks: flat, because one block at a time is in memory.

The blocks are large (11.8M weights, 47 MB in float32) and everything else is small (258 tokens of vocabulary), so that a model held
whole, or statistics kept for all blocks, would show: 16 blocks are 755 MB. Every run is a process of its own from `import` to the
written directory and GGUF file; `above_imports_mb` leaves out what Python, torch and transformers take before anything happens.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import tiny
from benchmarks.harness import Goal, Row, Session, at_most, worker

DEPTHS = (4, 8, 16)
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8, "initializer_range": 0.02}
TOKENS = 2048


def rows(session: Session) -> Iterator[Row | None]:
    depths = (2,) if session.smoke else DEPTHS
    floor = session.row("imports", lambda: _cost(session, "imports", {}))
    yield floor
    for depth in depths:
        yield session.row(f"{depth} blocks", lambda d=depth: _compress(session, d, (floor or {})["peak_mb"]))


def _compress(session: Session, depth: int, floor_mb: float) -> Row:
    sizes = {"num_hidden_layers": depth} | ({} if session.smoke else SIZES)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        worker("make", {"path": str(model), "sizes": sizes}, inline=session.smoke)
        text = tiny.text(Path(folder) / "text.txt")
        # Two things hold a model whole, and are left out: its writing of calibration text (models of up to 500M parameters only) and
        # the runtimes in which the written files are tried (their codes are still read back and compared).
        options = {
            "tokens": 1024 if session.smoke else TOKENS,
            "exports": ["gguf"],
            "calibration": str(text),
            "written": 0.0,
            "prove": False,
        }
        row = _cost(session, "compress", {"path": str(model), "out": f"{folder}/out", "options": options})
        weights = (model / "model.safetensors").stat().st_size
    return {"blocks": depth, "model_mb": round(weights / 2**20, 1)} | row | {"above_imports_mb": round(row["peak_mb"] - floor_mb, 1)}


def _cost(session: Session, task: str, arguments: Row) -> Row:
    cost = worker(task, arguments, threads=session.threads)
    return {key: cost[key] for key in ("peak_mb", "cpu_seconds", "seconds")}


def goals(rows: list[Row]) -> list[Goal]:
    """Largest deviation from the mean over the depths, of the peak and of what lies above the imports."""
    runs = [row for row in rows if "blocks" in row]
    result = []
    for key, name in (("peak_mb", "peak memory"), ("above_imports_mb", "peak memory above imports")):
        values = [row[key] for row in runs]
        mean = sum(values) / len(values) if values else 0.0
        deviation = 100 * max(abs(v - mean) for v in values) / mean if len(values) > 1 else None
        depths = ", ".join(str(row["blocks"]) for row in runs)
        result.append(at_most(f"{name}: deviation from the mean over {depths} blocks", deviation, 10, " %"))
    return result
