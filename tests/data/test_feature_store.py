"""The feature store survives a kill at any byte."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mmkd.data.feature_store import FeatureStore, image_key
from mmkd.data.fill import fill
from mmkd.data.images import open_image
from mmkd.errors import DataError


def keys(*numbers: int) -> list[str]:
    return [image_key(bytes([number])) for number in numbers]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_come_back_as_they_were_put_also_in_a_new_process(tmp_path, dtype):
    features = torch.randn(3, 4, 5)
    store = FeatureStore(tmp_path, "tower", dtype)
    assert store.missing(keys(1, 2, 1)) == keys(1, 2)
    store.put(keys(1, 2, 3), features)
    for reader in (store, FeatureStore(tmp_path, "tower", dtype)):
        assert reader.missing(keys(3, 4)) == keys(4)
        for number in (1, 2, 3):
            assert torch.equal(reader.get(keys(number)[0]), features[number - 1 : number].to(dtype))


def test_an_image_of_several_tiles_is_one_entry(tmp_path):
    features = torch.randn(5, 2, 3)
    store = FeatureStore(tmp_path, "tower", torch.float32)
    store.put(keys(1, 2), features, tiles=[2, 3])
    assert torch.equal(store.get(keys(1)[0]), features[:2])
    assert torch.equal(store.get(keys(2)[0]), features[2:])


def test_what_is_there_is_not_written_again_and_two_writers_do_not_disturb_each_other(tmp_path):
    one, two = FeatureStore(tmp_path, "tower"), FeatureStore(tmp_path, "tower")
    first, second = torch.ones(2, 1, 2), torch.zeros(2, 1, 2)
    one.put(keys(1, 2), first)
    two.put(keys(2, 3), second)
    one.put(keys(4), torch.full((1, 1, 2), 4.0))
    assert two.get(keys(2)[0]).tolist() == [[[1, 1]]]
    assert one.get(keys(3)[0]).tolist() == [[[0, 0]]]
    assert two.get(keys(4)[0]).tolist() == [[[4, 4]]]
    assert (tmp_path / "tower" / "features.bin").stat().st_size == 4 * 2 * 2


def test_a_kill_at_any_byte_loses_only_the_last_put_and_never_gives_wrong_features(tmp_path):
    whole = tmp_path / "whole"
    features = torch.arange(6.0).reshape(3, 1, 2)
    FeatureStore(whole, "t").put(keys(1), features[:1])
    index_before = (whole / "t" / "index.txt").read_bytes()
    data_before = (whole / "t" / "features.bin").read_bytes()
    FeatureStore(whole, "t").put(keys(2, 3), features[1:])
    index, data = (whole / "t" / "index.txt").read_bytes(), (whole / "t" / "features.bin").read_bytes()
    # Data first, then the index: the states in which a kill can leave the two files.
    states = [(index_before, data[:n]) for n in range(len(data_before), len(data) + 1)]
    states += [(index[:n], data) for n in [*range(len(index_before), len(index), 5), len(index) - 1, len(index)]]
    for number, (index_bytes, data_bytes) in enumerate(states):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (folder / "t" / "index.txt").write_bytes(index_bytes)
        (folder / "t" / "features.bin").write_bytes(data_bytes)
        store = FeatureStore(folder, "t")
        assert keys(1)[0] in store
        lost = store.missing(keys(1, 2, 3))
        if lost:
            store.put(lost, torch.stack([features[keys(1, 2, 3).index(key)] for key in lost]))
        for reader in (store, FeatureStore(folder, "t")):
            for place, key in enumerate(keys(1, 2, 3)):
                assert torch.equal(reader.get(key)[0].float(), features[place]), f"state {number}"


def test_a_torn_index_line_longer_than_the_next_one_leaves_nothing_behind(tmp_path):
    FeatureStore(tmp_path, "t").put(keys(1), torch.ones(1000, 1, 1), tiles=[1000])
    index = tmp_path / "t" / "index.txt"
    index.write_bytes(index.read_bytes()[:-1])  # all but the newline
    FeatureStore(tmp_path, "t").put(keys(2), torch.full((1, 1, 1), 2.0))
    FeatureStore(tmp_path, "t").put(keys(3), torch.full((1, 1, 1), 3.0))
    store = FeatureStore(tmp_path, "t")
    assert store.missing(keys(1, 2, 3)) == keys(1)
    assert [float(store.get(key)) for key in keys(2, 3)] == [2.0, 3.0]


def test_values_too_large_for_half_precision_are_refused_and_not_kept_as_infinite(tmp_path):
    store = FeatureStore(tmp_path, "tower")
    with pytest.raises(DataError, match=r"not finite in torch.float16 \(largest value 1e\+05\).*bfloat16"):
        store.put(keys(1), torch.full((1, 1, 1), 1e5))
    assert store.missing(keys(1)) == keys(1)


def test_another_tower_has_its_own_features_and_another_shape_or_dtype_is_refused(tmp_path):
    store = FeatureStore(tmp_path, "tower")
    store.put(keys(1), torch.ones(1, 2, 3))
    assert FeatureStore(tmp_path, "other").missing(keys(1)) == keys(1)
    with pytest.raises(DataError, match="keeps 2 x 3 values a tile, these features have 4 x 3"):
        store.put(keys(2), torch.ones(1, 4, 3))
    with pytest.raises(DataError, match=r"keeps torch.float16, torch.float32 was asked for"):
        FeatureStore(tmp_path, "tower", torch.float32)


def test_a_missing_image_is_named(tmp_path):
    store = FeatureStore(tmp_path, "tower")
    store.put(keys(1), torch.ones(1, 1, 1))
    with pytest.raises(DataError, match=f"has no image {keys(2)[0]}"):
        store.get(keys(2)[0])


def test_a_store_can_be_sent_to_a_loader_worker(tmp_path):
    store = FeatureStore(tmp_path, "tower")
    store.put(keys(1), torch.ones(1, 1, 1))
    store.get(keys(1)[0])
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).get(keys(1)[0]), store.get(keys(1)[0]))  # noqa: S301


def test_filling_runs_the_tower_once_for_each_different_image_and_goes_on_after_a_kill(
    tmp_path, processor, record, picture
):
    Path(tmp_path, "broken.png").write_bytes(b"no picture")
    records = [record(str(n), ("q", "a"), images=[picture(n % 5)]) for n in range(12)]
    records.append(record("broken", ("q", "a"), images=[str(tmp_path / "broken.png")]))
    seen = []

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return pixels.flatten(2).transpose(1, 2)  # [tiles, 64, 3]

    store = FeatureStore(tmp_path, "tower", torch.float32)
    next(fill(store, [records], processor, tower, batch_size=2))  # killed after a batch
    assert list(fill(store, [records], processor, tower, batch_size=2)) == [2, 4, 6]
    assert sum(seen) == 5
    pixels, _ = processor.image_tensors([open_image(picture(3))])
    assert torch.equal(store.get(image_key(picture(3))), pixels.flatten(2).transpose(1, 2))


def test_two_ranks_fill_a_store_together(tmp_path, processor, record, picture):
    records = [record(str(n), ("q", "a"), images=[picture(n)]) for n in range(5)]
    counts = []
    for rank in (0, 1):
        store = FeatureStore(tmp_path, "tower", torch.float32)

        def tower(pixels: torch.Tensor) -> torch.Tensor:
            counts.append(len(pixels))
            return pixels.flatten(2)

        list(fill(store, [records], processor, tower, rank=rank, world_size=2))
    assert sorted(counts) == [2, 3]
    assert len(FeatureStore(tmp_path, "tower", torch.float32)) == 5
