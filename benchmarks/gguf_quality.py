"""Our Q4_0 file against llama.cpp's own Q4_0 files of the same float model, plain and with importance matrix, at the same bytes.

All three files are read back from disk, dequantized and scored by one evaluator. The two peers differ from ours in nothing but codes
and scales: they are our file with every quantized tensor replaced by llama.cpp's quantization of the float weight (token table included).
The importance matrix is taken over the very windows that our own method calibrates on: documentation, and as much written by the model.

A row can be measured again alone: `--again imatrix` forgets the rows with that in their name and keeps the others of the result.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Goal, Row, Session, at_least, at_most, worker

OURS, PLAIN, GUIDED = "lessen Q4_0", "llama.cpp Q4_0", "llama.cpp Q4_0 + imatrix"
VARIANT = "rescaled"


def rows(session: Session) -> Iterator[Row | None]:
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "gguf" / "model.gguf"
        calibrated = {"smoke": session.smoke, "variant": VARIANT, "method": "default", "work": f"{folder}/work", "written": 0.5}

        def made() -> Row:
            """Cost of our file; made again if a resumed run needs it for a peer's row."""
            cost = worker("export", calibrated | {"out": folder, "formats": ["gguf"]}, inline=session.smoke, threads=session.threads)
            return {"codes_equal": cost.pop("answer")["exports"][0]["codes_equal"]} | cost

        def compute(name: str) -> Row:
            cost = made() if not ours.exists() else {}
            path = ours
            if name != OURS:
                path = Path(folder) / "theirs.gguf"
                shutil.copy(ours, path)
                arguments = {"path": str(path), "guided": name == GUIDED}
                cost = worker("llama_cpp", calibrated | arguments, inline=session.smoke, threads=session.threads)
                cost.pop("answer")
            arguments = {"smoke": session.smoke, "variant": VARIANT, "path": str(path)}
            quality = worker("score_file", arguments, inline=session.smoke, threads=session.threads)["answer"]
            return {"variant": VARIANT, "method": name, "size_bytes": path.stat().st_size} | cost | quality

        for name in (OURS, PLAIN, GUIDED):
            yield session.row(name, lambda n=name: compute(n))


def goals(rows: list[Row]) -> list[Goal]:
    """Lower KL at the same bytes, on both texts and on their mean."""
    found = {row["key"]: row for row in rows}
    result = []
    for peer, percent in ((PLAIN, 60), (GUIDED, 35)):
        for text in ("near", "far", "mean"):
            have, against = (_kld(found.get(name), text) for name in (OURS, peer))
            lower = None if have is None or against is None else 100 * (1 - have / against)
            result.append(at_least(f"{text}: KL below {peer}", lower, percent, " %"))
    sizes = {row["size_bytes"] for row in rows}
    result.append(at_most("difference of the files' sizes in bytes", float(max(sizes) - min(sizes)) if len(rows) == 3 else None, 0))
    return result


def _kld(row: Row | None, text: str) -> float | None:
    if row is None:
        return None
    return (row["near_kld"] + row["far_kld"]) / 2 if text == "mean" else row[f"{text}_kld"]
