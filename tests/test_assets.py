"""Assets: fetched from their pinned wheels, checked, unpacked in one step, and mended when broken.

The tests make a tiny wheel and let the real pip fetch it from a folder; one slow test takes the real packages.
"""

import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmkd import assets
from mmkd.errors import AssetError

FILES = {
    "tiny/data/a.txt": b"alpha",
    "tiny/data/sub/b.txt": b"beta",
    "tiny/data/.DS_Store": b"x",
    "tiny/__init__.py": b"",
}


def make_wheel(folder: Path, files: dict[str, bytes] = FILES) -> str:
    """Write tiny-1.0-py3-none-any.whl; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    info = "tiny-1.0.dist-info"
    meta = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | meta).items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing_digest(files: dict[str, bytes]) -> str:
    """The definition: SHA-256 of what `sha256sum` prints for the files, sorted by path."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and nothing else."""
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path / "index"


def tiny(wheel_sha256: str, **changes) -> assets.Asset:
    values = {
        "name": "tiny", "package": "tiny", "version": "1.0", "member": "tiny/data/", "wheel_sha256": wheel_sha256,
        "sha256": listing_digest({"a.txt": b"alpha", "sub/b.txt": b"beta"}), "license": "MIT", "skip": (".DS_Store",),
    }  # fmt: skip
    return assets.Asset(**(values | changes))


@pytest.fixture
def asset(index, monkeypatch) -> assets.Asset:
    made = tiny(make_wheel(index))
    monkeypatch.setitem(assets.ASSETS, "tiny", made)
    return made


def test_a_folder_is_fetched_without_the_rest_of_its_package(asset):
    place = assets.path("tiny")
    assert sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()) == [
        "a.txt",
        "sub/b.txt",
    ]
    assert (place / "sub/b.txt").read_bytes() == b"beta"
    assert sorted(item.name for item in assets.cache().iterdir()) == ["tiny-1.0", "tiny-1.0.lock"]


def test_a_single_file_is_fetched(index, monkeypatch):
    digest = hashlib.sha256(b"alpha").hexdigest()
    one = tiny(make_wheel(index), member="tiny/data/a.txt", sha256=digest)
    monkeypatch.setitem(assets.ASSETS, "tiny", one)
    assert assets.path("tiny").name == "a.txt"
    assert assets.path("tiny").read_bytes() == b"alpha"


def test_what_is_there_needs_no_index(asset, index):
    place = assets.path("tiny")
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    assert assets.path("tiny") == place


@pytest.mark.parametrize("damage", ["truncated", "deleted", "added", "no stamp", "torn stamp"])
def test_a_partial_copy_is_seen_and_fetched_again(asset, damage):
    place = assets.path("tiny")
    stamp = asset.folder / assets.STAMP
    if damage == "truncated":
        (place / "a.txt").write_bytes(b"alp")
    elif damage == "deleted":
        (place / "sub/b.txt").unlink()
    elif damage == "added":
        (place / "c.txt").write_bytes(b"c")
    elif damage == "no stamp":
        stamp.unlink()
    else:
        stamp.write_text('{"sha2')
    assert not assets.is_present(asset)
    assert assets.path("tiny") == place
    assert (place / "a.txt").read_bytes() == b"alpha"
    assert assets.is_intact(asset)


def test_a_changed_byte_of_the_same_size_is_seen_by_the_full_check(asset):
    place = assets.path("tiny")
    (place / "a.txt").write_bytes(b"alphA")
    assert assets.is_present(asset)
    assert not assets.is_intact(asset)
    assets.fetch(asset)
    assert (place / "a.txt").read_bytes() == b"alpha"


def test_another_pinned_version_is_not_taken_for_this_one(asset):
    assets.path("tiny")
    assert not assets.is_present(tiny(asset.wheel_sha256, sha256="0" * 64))


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(index, monkeypatch):
    found = make_wheel(index, FILES | {"tiny/data/a.txt": b"evil"})
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny("0" * 64))
    with pytest.raises(AssetError, match=f"SHA-256 {found}, expected {'0' * 64}"):
        assets.path("tiny")
    assert [item.name for item in assets.cache().iterdir()] == ["tiny-1.0.lock"]


def test_unpacked_files_with_another_hash_are_refused(index, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny(make_wheel(index), sha256="1" * 64))
    with pytest.raises(AssetError, match=r"unpacked tiny/data/ has SHA-256 .* expected 1111"):
        assets.path("tiny")
    assert not (assets.cache() / "tiny-1.0").exists()


def test_a_member_that_is_not_in_the_wheel_is_named(index, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny(make_wheel(index), member="tiny/gone/"))
    with pytest.raises(AssetError, match="unpacked tiny/gone/ has SHA-256 nothing"):
        assets.path("tiny")


def test_a_path_that_leaves_the_folder_is_not_unpacked(index, monkeypatch, tmp_path):
    digest = make_wheel(index, FILES | {"tiny/data/../../../../escaped.txt": b"out"})
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny(digest))
    with pytest.raises(AssetError, match="unsafe path"):
        assets.path("tiny")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_offline_and_missing_says_how_to_bring_it(asset, index):
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AssetError, match=r"pip could not download tiny==1\.0: (.|\n)*another machine"):
        assets.path("tiny")


def test_leftovers_of_a_killed_fetch_are_swept(asset):
    left = assets.cache() / ".tiny-abc"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    assets.path("tiny")
    assert not left.exists()


def test_two_that_ask_at_once_get_one_whole_copy(asset):
    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(assets.path, ["tiny", "tiny"]))
    assert places[0] == places[1]
    assert assets.is_intact(asset)


def test_a_cache_that_cannot_be_written_is_named(asset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="MMKD_CACHE"):
        assets.path("tiny")


def test_an_unknown_asset_is_named():
    with pytest.raises(AssetError, match="'eazyvqa' is not known; there are: easyvqa"):
        assets.path("eazyvqa")


def test_every_asset_pins_two_hashes_and_names_its_licence():
    for asset in assets.ASSETS.values():
        assert len(bytes.fromhex(asset.wheel_sha256)) == len(bytes.fromhex(asset.sha256)) == 32
        assert asset.license


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("name", ["easyvqa", "smollm2-135m", "efficientnet-lite0"])
def test_the_real_asset_in_the_cache_is_byte_for_byte_the_pinned_one(name):
    asset = assets.ASSETS[name]
    if not assets.is_present(asset):
        pytest.skip(f"{name} is not in the cache, and tests use no network; bring it with: mmkd assets")
    assert assets.is_intact(asset)
    if name == "easyvqa":
        assert len(os.listdir(asset.path / "train" / "images")) == 4000
        assert (asset.path / "answers.txt").is_file()
