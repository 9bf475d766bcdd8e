"""What was asked of `lessen plan`, kept beside its decisions so that `lessen apply` needs to be told nothing twice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lessen import recipe
from lessen.errors import UsageError

FILE = "request.json"


@contextmanager
def kept(plan: Path | None, model: str, asked: dict[str, Any]) -> Iterator[Path]:
    """A directory for decisions: `plan`, with the request in it once they are all made, or one that is gone afterwards.

    Raises:
        UsageError: the directory holds something else.
    """
    if plan is None:
        with TemporaryDirectory(prefix="lessen-") as folder:
            yield Path(folder)
        return
    if plan.exists() and not (plan.is_dir() and ((plan / "job.json").exists() or not any(plan.iterdir()))):
        got = "something that lessen plan did not write"
        raise UsageError(str(plan), got=got, wanted="a new directory, or a plan to go on with", remedy="choose another --out")
    yield plan
    _save(plan, model, asked)


def _save(plan: Path, model: str, asked: dict[str, Any]) -> None:
    """Write the request into the plan's directory; paths become absolute, since apply may run elsewhere."""
    data = {**asked, "model": _absolute(model), "calibration": _absolute(asked["calibration"])}
    data["to"] = str(asked["to"]) if asked["to"] else None
    if asked["recipe"] is not None:
        settings = {"calibration": _absolute(asked["recipe"].calibration), "tokens": asked["recipe"].tokens, "seed": asked["recipe"].seed}
        given = {name: value for name, value in settings.items() if value is not None}
        data["recipe"] = {"method": recipe.to_json(asked["recipe"]), **given}
    aside = plan / f"{FILE}.aside"
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.replace(plan / FILE)


def read(plan: Path) -> tuple[str, dict[str, Any]]:
    """The model and what was asked, from a complete plan.

    Raises:
        UsageError: not a plan.
    """
    if not (plan / FILE).is_file():
        raise UsageError(str(plan), got=f"no {FILE}", wanted="a plan that is complete", remedy="make it with lessen plan MODEL --out DIR")
    try:
        data = json.loads((plan / FILE).read_text())
        model = str(data.pop("model"))
        if data["recipe"] is not None:
            data["recipe"] = recipe.loads(json.dumps(data["recipe"]), str(plan / FILE))
    except (ValueError, KeyError) as error:
        got = f"a request that cannot be read ({type(error).__name__}: {error})"
        raise UsageError(str(plan / FILE), got=got, wanted="what lessen plan wrote", remedy="plan again") from None
    return model, data


def _absolute(ref: str | None) -> str | None:
    return str(Path(ref).absolute()) if ref is not None and Path(ref).exists() else ref
