"""The evidence: one JSON object per edit, one per run. Reports, cards and tables read records and nothing else."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One edit, described.

    Attributes:
        block: decoder block, None outside the blocks.
        unit: name of the tensor or unit that was edited.
        method: what decided, with its options (`GPTQ(bits=4, group=32)`).
        action: "quantize", "keep", "replace", "factor", "drop" or "skip".
        shape_before, shape_after: shapes of the tensor, or sizes of the unit.
        bits: stored bits per weight after the edit (with scales).
        error: relative squared error of the unit's output on held-out calibration text (dimensionless), None if not measured.
        seconds: time spent deciding.
        reason: for people: why this candidate, why skipped.
        candidates: error of every candidate that was tried, by name: how far the block's output is from the original model's at this
            depth, what earlier blocks have done to it included. The smallest was kept.
        own: by the same names, what the block itself adds: the distance to what its original weights make of the same inputs.
    """

    block: int | None
    unit: str
    method: str
    action: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    bits: float
    error: float | None = None
    seconds: float = 0.0
    reason: str = ""
    candidates: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """Everything about one run: `lessen.json` in the output directory is this object.

    Attributes:
        source: where the model came from, its architecture, parameters, bytes and content hash.
        recipe: the methods as plain data (what `recipe.to_json` gives).
        command: the command line, or "python".
        environment: versions, processor, threads, seed.
        calibration: text source, tokens, sha256 of the token ids.
        records: one per edit.
        sizes: bytes and bits per weight, before and after (see docs/reports.md).
        quality: results of `lessen.evaluate`, by text name; each holds ppl, ppl_reference, kld_mean, kld_median, kld_p90, top1, kld_noise.
        speed: measured tokens per second, by runtime.
        exports: one per exported file: format, path, bytes, parity figures.
        samples: before/after text samples.
        seconds: wall-clock seconds by phase.
        notes: choices made for the user, said aloud.
    """

    source: dict[str, Any] = field(default_factory=dict)
    recipe: list[dict[str, Any]] = field(default_factory=list)
    command: str = "python"
    environment: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    formats: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    speed: list[dict[str, Any]] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def save(self, path: Path) -> None:
        """Write as JSON, aside and then renamed."""
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        data["records"] = [
            Record(**{**r, "shape_before": tuple(r["shape_before"]), "shape_after": tuple(r["shape_after"])}) for r in data["records"]
        ]
        return cls(**data)
