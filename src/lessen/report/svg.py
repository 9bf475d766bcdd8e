"""A matplotlib figure as inline SVG that follows the page: its colours are CSS variables and its letters are the page's own font.

matplotlib knows only fixed colours, so the plots are drawn in stand-ins (`INK`, `ACCENT`, ...) that occur nowhere else; after drawing,
each stand-in becomes `var(--ink)` and so on. The page then turns dark, or black on white for print, with no second picture.
"""

import re
from contextlib import AbstractContextManager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from lessen.errors import LessenError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER, ACCENT, SECOND, THIRD = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708", "#070809"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper", ACCENT: "accent", SECOND: "second", THIRD: "third"}

STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 12,
}


def style() -> AbstractContextManager[None]:
    """matplotlib's settings for the plots, until the context is left; LessenError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise LessenError("report", got="no matplotlib", wanted="it for the plots", remedy="pip install 'lessen[report]'") from error
    return mpl.rc_context(STYLE)  # pyright: ignore[reportArgumentType]


def figure(width: float, height: float) -> "Figure":
    """An empty figure measured in CSS pixels, without pyplot and its global list of figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="none")


def inline(fig: "Figure", name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element for inlining.

    Args:
        fig: the figure, drawn in the stand-in colours.
        name: unique on the page; keeps the ids of two figures apart.
        title: the text alternative, in a few words.
        description: what the figure shows, with its figures, for those who do not see it.
    """
    import matplotlib as mpl

    buffer = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box, "matplotlib wrote an SVG without a viewBox"
    body = text[text.index(">") + 1 :]
    head = f'<svg role="img" {box[0]} aria-labelledby="{name}-t {name}-d" xmlns:xlink="http://www.w3.org/1999/xlink">'
    alternative = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    return re.sub(r"\n\s*", "\n", head + alternative + body).strip()
