"""Quality, bytes and cost of every quantization method on SmolLM2-135M, and of two peers, by one evaluator in one run.

The shipped weights lie on a Q4_1 grid, which flatters every 4-bit method in groups of 32; so the float model is a variant of the same
function whose weights do not (`benchmarks.variants`, proved in the first rows). Linear weights are quantized, embeddings kept in float.
Every configuration decides in a process of its own, which is what cpu_seconds (user and system) and peak_mb are of.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import Goal, Row, Session, at_least, at_most, measured, worker
from benchmarks.material import Material, material
from lessen import recipe
from lessen.engine import dial
from lessen.errors import LessenError
from lessen.methods import AWQ, GPTQ, RTN

BITS = (4, 3)
GROUPS = (64, 32, None)
OURS = "lessen default"
TEXTS = ("near", "far")
SECONDS = 300  # CPU-seconds that a configuration of the goals may take


def methods(bits: int, group: int | None) -> dict[str, object]:
    """What is compared on one grid, by name."""
    return {
        "RTN absmax": RTN(bits, group, full_range=False, scale="absmax"),
        "RTN full range": RTN(bits, group, scale="absmax"),
        "RTN mse": RTN(bits, group, scale="mse"),
        "RTN hessian": RTN(bits, group, scale="hessian"),
        "GPTQ plain": GPTQ(bits, group, full_range=False, scale="absmax", reorder=False, shrinkage=0.0, polish=0),
        "GPTQ": GPTQ(bits, group),
        "AWQ": AWQ(bits, group),
        OURS: dial.candidates(bits, group),
    }


def rows(session: Session) -> Iterator[Row | None]:
    found = material(session.smoke)
    for variant in ("rescaled", "rotated"):
        yield session.row(f"{variant} float", lambda v=variant: _float(session, v))
    bits_of, groups = ((4,), (32,)) if session.smoke else (BITS, GROUPS)
    for bits in bits_of:
        for group in groups:
            for name, method in methods(bits, group).items():
                yield _ours(session, "rescaled", name, method, bits, group)
    for name, method in methods(4, 32 if session.smoke else 64).items():
        yield _ours(session, "rotated", name, method, 4, 32 if session.smoke else 64)
    if session.smoke:
        return
    for name, peer, bits, group in [
        ("llm-compressor GPTQ", "llm_compressor", 4, 64),
        ("AutoRound 50 iterations", "sign_round", 4, 64),
        ("llm-compressor GPTQ", "llm_compressor", 4, 32),
        ("AutoRound 50 iterations", "sign_round", 3, 64),
    ]:
        head = {"variant": "rescaled", "method": name, "bits": bits, "group": group}
        yield session.row(_key(**head), lambda h=head, p=peer: h | _peer(session, found, p, h["bits"], h["group"]))


def _key(variant: str, method: str, bits: int, group: int | None) -> str:
    return f"{variant} W{bits} g{group or 'row'} {method}"


def _float(session: Session, variant: str) -> Row:
    answer = worker("proof", {"smoke": session.smoke, "variant": variant}, inline=session.smoke, threads=session.threads)["answer"]
    return {"variant": variant, "method": "float32", "bits": 32, "group": None, "bpw": 32.0, **answer}


def _ours(session: Session, variant: str, name: str, method: object, bits: int, group: int | None) -> Row | None:
    head = {"variant": variant, "method": name, "bits": bits, "group": group}

    def compute() -> Row:
        with tempfile.TemporaryDirectory() as work:
            data = recipe.to_json([method])[0]  # pyright: ignore[reportArgumentType]
            arguments = {"smoke": session.smoke, "variant": variant, "method": data, "work": work, "written": 0.5 * (name == OURS)}
            cost = worker("quantize", arguments, inline=session.smoke, threads=session.threads)
            quality = worker("score", arguments, inline=session.smoke, threads=session.threads)["answer"]
        return head | cost.pop("answer") | cost | quality

    return session.row(_key(**head), compute)


def _peer(session: Session, found: Material, peer: str, bits: int, group: int) -> Row:
    """A peer's result, from the directory that it saved; or the reason why there is none."""
    try:
        python = peers.python(peer)
    except LessenError as error:
        return {"skipped": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [str(python), str(peers.script(peer)), str(found.model("rescaled")), str(found.tokens), str(out), str(bits), str(group)]
        cost = measured(command, threads=session.threads)
        if cost["code"]:
            return {"skipped": f"exit code {cost['code']}: {cost['stderr'].strip().splitlines()[-1]}"}
        saved = next(out.rglob("config.json")).parent
        arguments = {"smoke": session.smoke, "variant": "rescaled", "path": str(saved)}
        quality = worker("score_directory", arguments, threads=session.threads)["answer"]
        scale_bits = peers.scale_bits(saved)
    return {k: cost[k] for k in ("cpu_seconds", "peak_mb", "seconds")} | {"bpw": bits + scale_bits / group} | quality


def goals(rows: list[Row]) -> list[Goal]:
    """The figures that were promised, each on both texts."""
    found = {row["key"]: row for row in rows}
    # "RTN" may mean 2^b - 1 levels or all 2^b, the grid of ours: at 3 bits that is much, so both are shown.
    plain = ("RTN absmax", "RTN full range")
    promised = [
        *((4, 64, name, 60) for name in ("RTN mse", "RTN full range")),
        *((4, 32, name, 65) for name in plain),
        *((3, 64, name, 75) for name in plain),
    ]
    result = []
    for bits, group, baseline, percent in promised:
        ours = found.get(_key("rescaled", OURS, bits, group), {})
        base = found.get(_key("rescaled", baseline, bits, group), {})
        for text in TEXTS:
            have, against = ours.get(f"{text}_kld"), base.get(f"{text}_kld")
            lower = None if have is None or against is None else 100 * (1 - have / against)
            result.append(at_least(f"W{bits} g{group} {text}: KL below {baseline}", lower, percent, " %"))
        if baseline != "RTN full range":
            result.append(at_most(f"W{bits} g{group}: CPU-seconds", ours.get("cpu_seconds"), SECONDS))
    for variant in ("rescaled", "rotated"):
        row = found.get(f"{variant} float", {})
        result.append(at_most(f"{variant}: largest difference of a logit to the shipped model", row.get("logits_max_error"), 1e-3))
        result.append(at_least(f"{variant}: share of weights off the shipped grid", row.get("off_grid"), 0.999))
    return result
