"""A table of reads in CSV, as numbers by device and time.

Each line says which device was meant to have which conductance and what it had when:

    target_us,seconds,conductance_us,device
    5.0,20,5.31,0
    5.0,20,5.28,0          a device read more than once at a time shows the noise of reading
    5.0,3600,4.97,0        and at more than one time, its drift
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lessen.errors import UsageError

COLUMNS = ("target_us", "seconds", "conductance_us", "device")
"""What a table of measurements has; more columns are ignored."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reads:
    """A table by device and time, with NaN where a device was not read at a time.

    Attributes:
        target: microsiemens, (devices,).
        times: seconds, ascending, (times,).
        mean: of the reads, in microsiemens, (devices, times).
        count: of the reads.
        square: sum of squared deviations from the mean.
    """

    target: Array
    times: Array
    mean: Array
    count: Array
    square: Array


def read(path: Path) -> Reads:
    """A table, checked.

    Raises:
        UsageError: a column is missing, or a value is no number or negative.
    """
    target, seconds, conductance, device = _table(path)
    chips, chip = np.unique(np.column_stack([device.astype(np.float64), target]), axis=0, return_inverse=True)
    times, time = np.unique(seconds, return_inverse=True)
    cell, size = chip.ravel() * len(times) + time.ravel(), len(chips) * len(times)
    count = np.bincount(cell, minlength=size).astype(np.float64)
    mean = np.divide(np.bincount(cell, conductance, size), count, out=np.full(size, np.nan), where=count > 0)
    square = np.asarray(np.bincount(cell, (conductance - mean[cell]) ** 2, size), np.float64)
    shape = (len(chips), len(times))
    return Reads(chips[:, 1], times, mean.reshape(shape), count.reshape(shape), square.reshape(shape))


def _table(path: Path) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Columns of a table, checked."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UsageError(str(path), got=got.lower(), wanted="a table of measurements in CSV") from None
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        got = f"no column {missing[0]}" if missing else "no rows"
        raise UsageError(str(path), got=got, wanted=f"columns {', '.join(COLUMNS)} and a row for each read")
    columns: list[Array] = []
    for name in COLUMNS[:3]:
        values = np.empty(len(rows))
        for i, row in enumerate(rows):
            try:
                values[i] = float(row[name] or "nan")
            except ValueError:
                values[i] = math.nan
            least = 0.0 if name != "conductance_us" else -math.inf  # an amplifier's offset may read a little below zero
            if not (math.isfinite(values[i]) and values[i] >= least) or (name == "seconds" and values[i] == 0):
                wanted = {"seconds": "a number above 0", "target_us": "a number of at least 0"}.get(name, "a number")
                raise UsageError(f"{path}:{i + 2}", got=f"{name} = {row[name]!r}", wanted=wanted)
        columns.append(values)
    if columns[0].max() <= 0:
        raise UsageError(str(path), got="no target above 0", wanted="conductances up to the highest that is used")
    highest = float(columns[2][columns[0] == columns[0].max()].mean())
    if highest <= 0:
        raise UsageError(str(path), got=f"{highest:.3g} uS as mean of the highest target", wanted="conductances above 0, in microsiemens")
    names = {name: i for i, name in enumerate(dict.fromkeys(row["device"] for row in rows))}
    return columns[0], columns[1], columns[2], np.array([names[row["device"]] for row in rows])
