"""What there is, read off the tables that hold it."""

from pathlib import Path
from typing import Any

from lessen.errors import UsageError, nearest


def catalogue() -> dict[str, list[dict[str, str]]]:
    """Methods, formats, exporters and families, each with a word of explanation."""
    from lessen.export import EXPORTERS
    from lessen.formats.affine import Int
    from lessen.formats.floating import KINDS
    from lessen.methods import METHODS
    from lessen.models import PACKAGED
    from lessen.structure.families import FAMILIES

    floats = [{"number format": name, "what it is": f"{kind.bits}-bit float up to {kind.largest:g}"} for name, kind in KINDS.items()]
    return {
        "methods": [{"method": cls.__name__, "decides on": cls().kind, "what it does": _first_line(cls)} for cls in METHODS],
        "export formats": [{"export": name, "what it is": exporter.summary} for name, exporter in EXPORTERS.items()],
        "number formats": [{"number format": "int", "what it is": _first_line(Int)}, *floats],
        "model families": [{"model_type": name} for name in FAMILIES],
        "packaged models": [{"model": name} for name in PACKAGED],
    }


def described(method: str) -> list[dict[str, str]]:
    """The options of one method as rows; UsageError with the nearest name if there is no such method."""
    from lessen.core.options import options
    from lessen.methods import METHODS

    classes = {cls.__name__: cls for cls in METHODS}
    if method not in classes:
        raise UsageError("ls", got=f"the method {method}", wanted="one that exists", remedy=nearest(method, classes))
    return [
        {"option": option.name, "type": option.type, "default": repr(option.default), "help": option.help}
        for option in options(classes[method])
    ]


def draw(folder: Path, format: str, to: Path | None) -> tuple[Path | None, str]:
    """Write (or return) one view of a finished run: where it went and its text."""
    from lessen import report
    from lessen.core.record import Run

    analog = folder / "analog.json" if folder.is_dir() else folder
    if analog.name == "analog.json" and analog.exists():
        return _draw_analog(analog, format, to)
    views = {"html": report.html, "markdown": report.markdown, "card": report.model_card}
    if format not in views:
        raise UsageError("--format", got=format, wanted="a view of a run", remedy=nearest(format, views))
    record = folder / "lessen.json" if folder.is_dir() else folder
    if not record.exists():
        raise UsageError(str(folder), got="no lessen.json or analog.json", wanted="a directory that lessen wrote")
    text = views[format](Run.load(record))
    return _put(to or (record.parent / "report.html" if format == "html" else None), text), text


def _draw_analog(record: Path, format: str, to: Path | None) -> tuple[Path | None, str]:
    """The page of a run on an analog chip."""
    from lessen.analog.run.record import AnalogRun
    from lessen.report.analog import html

    if format != "html":
        raise UsageError("--format", got=format, wanted="html for a run on an analog chip", remedy="its tables are in analog.json")
    text = html(AnalogRun.load(record).to_json())
    return _put(to or record.parent / "report.html", text), text


def _put(path: Path | None, text: str) -> Path | None:
    if path is not None:
        aside = path.with_suffix(".aside")
        aside.write_text(text)
        aside.replace(path)
    return path


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0] if thing.__doc__ else ""
