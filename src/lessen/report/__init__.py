"""Records as pages, cards and tables: pure functions of a `Run`."""

from lessen.report.card import model_card
from lessen.report.markdown import markdown
from lessen.report.page import html
from lessen.report.terminal import plain, summary

__all__ = ["html", "markdown", "model_card", "plain", "summary"]
