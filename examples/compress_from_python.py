"""Compress a model from Python and read the record of the run.

    python examples/compress_from_python.py smollm2-135m out

What the command `lessen compress` does is one function; everything that it prints comes from the `Run` that the function returns.
"""

import sys
from typing import Any

import lessen
from lessen.core.event import Event


def listen(event: Event) -> None:
    if event.bits is not None:
        print(f"{event.phase} {event.done}/{event.total}: {event.bits:.2f} bits, error {event.error}")


def main(model: str = "smollm2-135m", out: str = "out", **options: Any) -> None:
    run = lessen.compress(model, out, to="4.5bpw", overwrite=True, on_event=listen, **options)

    before, after = run.sizes["before"], run.sizes["after"]
    print(f"{before['size_bytes'] / 1e6:.1f} MB became {after['size_bytes'] / 1e6:.1f} MB, {after['bpw']:.2f} bits per weight")
    for text, quality in run.quality.items():
        print(f"{text}: perplexity {quality['ppl_reference']:.2f} became {quality['ppl']:.2f}, KL {quality['kld_mean']:.4f} nats per token")
    worst = max((record for record in run.records if record.error is not None), key=lambda record: record.error or 0, default=None)
    if worst:
        print(f"largest error: {worst.unit} with {worst.error:.4f}, by {worst.method}")

    small = lessen.load(out)  # an ordinary module with the small model's weights
    print(f"{type(small).__name__} with {sum(p.numel() for p in small.parameters()):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:3])
