"""Decode and prefill speed of one model in every runtime that opens it, taking turns, with equal threads.

torch runs the float32 original; ONNX Runtime and llama.cpp run our exports of one solve; onnxruntime-genai's own builder makes the fourth,
4-bit with round-to-nearest and head included (ours has an 8-bit head). `lessen.evaluate.speed` says how the figures are kept honest.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Row, Session, at_least, measured, worker
from benchmarks.material import Material, material
from lessen.evaluate.speed import Backend, Workload, measure, usable_processors

TORCH, ONNX, GENAI, LLAMA = "torch float32", "lessen ONNX int4", "onnxruntime-genai int4", "lessen GGUF in llama.cpp"


def rows(session: Session) -> Iterator[Row | None]:
    found = material(session.smoke)
    counts = [1] if session.smoke else [n for n in (1, 2) if n <= usable_processors()]
    for threads in counts:
        measure_all = session.row(f"{threads} threads", lambda n=threads: _interleaved(session, found, n))
        for row in (measure_all or {}).get("backends", []):
            yield row | {"wall_seconds": (measure_all or {})["wall_seconds"] / len((measure_all or {})["backends"])}


def _interleaved(session: Session, found: Material, threads: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        arguments = {"smoke": session.smoke, "variant": "shipped", "method": "default", "work": f"{out}/work"}
        made = worker("export", arguments | {"out": str(out), "formats": ["gguf", "onnx"]}, inline=session.smoke)["answer"]
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(found.model("shipped")), "-o", str(out / "genai")]
        built = measured([*builder, "-p", "int4", "-e", "cpu", "-c", str(out / "cache")])
        backends = {
            TORCH: Backend("torch", str(found.model("shipped"))),
            ONNX: Backend("onnxruntime-genai", str(out / "onnx")),
            LLAMA: Backend("llama.cpp", str(out / "gguf" / "model.gguf")),
            GENAI: Backend("onnxruntime-genai", str(out / "genai")),
        }
        work = Workload(16, 4, threads=threads) if session.smoke else Workload(256, 64, threads=threads)
        speeds = measure(list(backends.values()), work, repeats=1 if session.smoke else 7)
        rows = [{"key": f"{threads} threads {name}", "method": name} | row for name, row in zip(backends, speeds, strict=True)]
        for row in rows:
            del row["path"], row["model"]
            if row["method"] == GENAI and built["code"]:
                row["reason"] = built["stderr"].strip().splitlines()[-1]
        return {"backends": rows, "exports": made}


def goals(rows: list[Row]) -> list[Goal]:
    """Our ONNX decode against torch, and against llama.cpp, at each number of threads."""
    found = {row["key"]: row for row in rows}
    result = []
    for threads in sorted({row["threads"] for row in rows}):
        onnx, torch, llama = (found[f"{threads} threads {name}"].get("decode_tps") for name in (ONNX, TORCH, LLAMA))
        result.append(at_least(f"{threads} threads: ONNX decode over torch", onnx / torch if onnx and torch else None, 7, "x"))
        result.append(at_least(f"{threads} threads: ONNX decode over llama.cpp", onnx / llama if onnx and llama else None, 1, "x"))
    return result
