"""Decode and prefill speed of one model in every runtime that opens it, taking turns, with equal threads.

torch runs the float32 original; ONNX Runtime and llama.cpp run our exports of one solve, whose head has 8 bits. onnxruntime-genai's own
builder makes the fourth, 4-bit with round-to-nearest, head included; the fifth is ours with such a head, rounded to nearest too, since
values do not change speed. `lessen.evaluate.speed` says how the figures are kept honest.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Row, Session, at_least, measured, worker
from benchmarks.material import Material, material
from lessen.evaluate.speed import Backend, Workload, measure, usable_processors
from lessen.methods import RTN
from lessen.recipe import to_json

TORCH, ONNX, GENAI, LLAMA = "torch float32", "lessen ONNX int4", "onnxruntime-genai int4", "lessen GGUF in llama.cpp"
HEAD = "lessen ONNX int4, 4-bit head"


def rows(session: Session) -> Iterator[Row | None]:
    found = material(session.smoke)
    counts = [1] if session.smoke else [n for n in (1, 2) if n <= usable_processors()]
    with tempfile.TemporaryDirectory() as folder:
        for threads in counts:
            together = session.row(f"{threads} threads", lambda n=threads: _interleaved(session, found, n, Path(folder)))
            if together is not None:
                share = together["wall_seconds"] / len(together["backends"])
                yield from (row | {"wall_seconds": round(share, 1)} for row in together["backends"])


def _interleaved(session: Session, found: Material, threads: int, folder: Path) -> Row:
    _export(session, found, folder)
    backends = {
        TORCH: Backend("torch", str(found.model("shipped"))),
        ONNX: Backend("onnxruntime-genai", str(folder / "onnx")),
        LLAMA: Backend("llama.cpp", str(folder / "gguf" / "model.gguf")),
        GENAI: Backend("onnxruntime-genai", str(folder / "genai")),
        HEAD: Backend("onnxruntime-genai", str(folder / "head" / "onnx")),
    }
    work = Workload(16, 4, threads=threads) if session.smoke else Workload(256, 64, threads=threads)
    speeds = measure(list(backends.values()), work, repeats=1 if session.smoke else 7)
    figures = [{key: value for key, value in row.items() if key not in ("path", "model")} for row in speeds]
    return {"backends": [{"key": f"{threads} threads {n}", "method": n} | row for n, row in zip(backends, figures, strict=True)]}


def _export(session: Session, found: Material, folder: Path) -> None:
    """Write our two exports and the peer's, once."""
    if (folder / "onnx").exists():
        return
    arguments = {"smoke": session.smoke, "variant": "shipped", "method": "default", "work": f"{folder}/work", "written": 0.5}
    worker("export", arguments | {"out": str(folder), "formats": ["gguf", "onnx"]}, inline=session.smoke)
    rounded = to_json([RTN(4, 32, scale="mse", on="embeddings"), RTN(4, 32, scale="mse")])
    head = {"smoke": session.smoke, "variant": "shipped", "method": rounded, "work": f"{folder}/work-head", "out": f"{folder}/head"}
    worker("export", head | {"formats": ["onnx"]}, inline=session.smoke)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(found.model("shipped")), "-o", str(folder / "genai")]
    built = measured([*builder, "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")])
    if built["code"]:  # the row of that backend will say that its folder is not there; this says why
        print(built["stderr"], file=sys.stderr)


def goals(rows: list[Row]) -> list[Goal]:
    """Our ONNX decode against torch, and against llama.cpp, at each number of threads."""
    found = {row["key"]: row for row in rows}
    result = []
    for threads in sorted({row["threads"] for row in rows}):
        onnx, torch, llama = (found[f"{threads} threads {name}"].get("decode_tps") for name in (ONNX, TORCH, LLAMA))
        result.append(at_least(f"{threads} threads: ONNX decode over torch", onnx / torch if onnx and torch else None, 7, "x"))
        result.append(at_least(f"{threads} threads: ONNX decode over llama.cpp", onnx / llama if onnx and llama else None, 1, "x"))
    return result
