"""Source code that lies beside every CPython: text of another kind than English, to judge on far from the calibration text.

A method that fits its calibration text too closely looks good on text like it and bad on the rest. Documentation cannot show that to a
model that was calibrated on documentation; program text can: other words, other punctuation, indentation, comments in between.

The modules are named one by one, old parts of the library written in Python that no distribution leaves out, so that the choice does not
depend on what is installed. Of each, the beginning of its definitions is taken, in the order of the sha256 of the names, which mixes
them. Docstrings are cut out: calibration reads the long ones, and they are English again. Comments stay.
"""

import ast
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec

_NAMES = """
argparse ast base64 bdb calendar cmd code codeop collections colorsys configparser contextlib copy csv dataclasses datetime difflib dis
email.message enum fileinput fnmatch fractions functools getopt gettext glob graphlib gzip hashlib heapq hmac html.parser http.client
http.cookies inspect ipaddress json.decoder json.encoder linecache locale logging mailbox mimetypes netrc numbers optparse pickle
pickletools plistlib poplib pprint profile pstats pyclbr queue quopri random reprlib sched selectors shelve shlex shutil smtplib
socketserver statistics string subprocess tarfile tempfile textwrap threading timeit tokenize trace traceback types typing unittest.case
urllib.parse urllib.request uuid wave weakref xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipfile
"""
MODULES = tuple(_NAMES.split())
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
PIECE = 2500  # characters of one module: 16 windows of 512 tokens then hold about ten of them


def pieces() -> Iterator[str]:
    """One piece of code for each module whose source can be read; none where an interpreter brings no sources."""
    for name in sorted(MODULES, key=lambda name: sha256(name.encode()).digest()):
        source = _source(name)
        if source is not None and (piece := _definitions(source)):
            yield piece


def _source(name: str) -> str | None:
    try:
        spec = find_spec(name)
        read = getattr(spec.loader, "get_source", None) if spec else None
        return read(name) if read else None
    except (ImportError, OSError, SyntaxError):  # no such module, or its file cannot be read or decoded
        return None


def _definitions(source: str) -> str:
    """The beginning of a module from its first definition on, without docstrings, up to a blank line."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    first = next((node for node in tree.body if isinstance(node, Definition)), None)
    if first is None:
        return ""
    start = min([first.lineno, *(decorator.lineno for decorator in first.decorator_list)])
    cut = {line for node in ast.walk(tree) if isinstance(node, Definition) for line in _docstring_lines(node)}
    kept = "\n".join(line for i, line in enumerate(source.splitlines(), 1) if i >= start and i not in cut)
    if len(kept) <= PIECE:
        return kept.strip() + "\n"
    end = max(kept.rfind("\n\n", 0, PIECE), PIECE // 2)
    return kept[: kept.rfind("\n", 0, end + 1)].strip() + "\n"


def _docstring_lines(node: Definition) -> range:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return range(first.lineno, (first.end_lineno or first.lineno) + 1)
    return range(0)
