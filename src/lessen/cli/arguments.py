"""Options of methods on the command line, without naming them twice.

`lessen compress m --method GPTQ --bits 3` should work, and `bits` is defined by the dataclass GPTQ, which imports torch and so cannot
be asked while `--help` is to answer at once. Therefore: a long option that the command itself does not have belongs to the `--method`
before it, and both are folded into the text that recipes understand, `--method "GPTQ(bits=3)"`. The recipe then checks it. In the same
way options of an exporter follow its `--format`.
"""

import re
from collections.abc import Collection, Sequence

HEADS = ("--method", "--format")


def fold(tokens: Sequence[str], own: Collection[str]) -> list[str]:
    """Fold options that are not the command's `own` into the `--method` (or `--format`) before them.

    >>> fold(["m", "--method", "GPTQ", "--bits", "3", "--out", "x", "--group=64", "--method", "RTN"], {"--method", "--out"})
    ['m', '--method', 'GPTQ(bits=3, group=64)', '--out', 'x', '--method', 'RTN']
    """
    folded: list[str] = []
    options: list[str] = []
    head: int | None = None  # where in `folded` the current method stands
    position = 0

    def close() -> None:
        if head is not None and options:
            folded[head] = f"{folded[head].removesuffix(')')}{', ' if folded[head].endswith(')') else '('}{', '.join(options)})"
        options.clear()

    while position < len(tokens):
        token = tokens[position]
        name, equals, value = token.partition("=")
        if token == "--":
            folded += tokens[position:]
            break
        if name in HEADS:
            close()
            folded += [name] + ([value] if equals else list(tokens[position + 1 : position + 2]))
            position += 1 if equals else 2
            head = len(folded) - 1 if folded[-1] not in HEADS else None
            continue
        if head is not None and name.startswith("--") and name not in own:
            position += 1
            if name.startswith("--no-"):
                name, value = f"--{name[5:]}", "false"
            elif not equals:
                value, position = _value(tokens, position)
            options.append(f"{name[2:].replace('-', '_')}={_literal(value)}")
            continue
        folded.append(token)
        position += 1
    close()
    return folded


def _value(tokens: Sequence[str], position: int) -> tuple[str, int]:
    """The value at `position`; an option followed by another option is a switch."""
    if position < len(tokens) and not re.match(r"--?[a-z]", tokens[position]):
        return tokens[position], position + 1
    return "true", position


def _literal(value: str) -> str:
    """Text that the recipe reads back as the number, word, list or string that was meant."""
    plain = re.fullmatch(r"[A-Za-z_]\w*|[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[\[(].*[\])]|[A-Za-z_]\w*\(.*\)", value)
    return value if plain else repr(value)
