"""Prune, then quantize: a recipe is a list, and each method sees the model as the methods before it leave it.

    python examples/prune_then_quantize.py smollm2-135m out

Widths stay multiples of 32, so that groups of 32 still divide them. The same as a file for `lessen compress --recipe`:

    [[method]]
    name = "FLAP"
    ratio = 0.2
    multiple = 32

    [[method]]
    name = "GPTQ"
    bits = 4
    group = 32
"""

import sys
from typing import Any

import lessen
from lessen import recipe

RECIPE = (__doc__ or "").split("--recipe`:")[1]


def main(model: str = "smollm2-135m", out: str = "out-pruned", **options: Any) -> None:
    methods = recipe.loads("\n".join(line.strip() for line in RECIPE.splitlines()))
    run = lessen.compress(model, out, recipe=methods, overwrite=True, **options)
    for record in run.records:
        if record.action == "keep":
            print(f"{record.unit}: {record.shape_before} -> {record.shape_after}")
    print(f"{run.sizes['before']['parameters']:,} parameters became {run.sizes['after']['parameters']:,}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
