"""Weight files: bit-exact reading of written files, by jaxclip and by the safetensors library."""

from __future__ import annotations

import gc
import io
import json
import mmap
import os
import pathlib
import resource
import shutil
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from written_tensors import SHAPES, values, write

from jaxclip.errors import UserError
from jaxclip.weights.formats.safetensors import DTYPES, open_tensors
from jaxclip.weights.formats.safetensors_writer import write_tensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def same(read: np.ndarray, expected: np.ndarray) -> bool:
    return read.dtype == expected.dtype and read.shape == expected.shape and read.tobytes() == expected.tobytes()


def in_file(array: np.ndarray) -> bool:
    """Whether an array is a read-only view of a mapped file."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array.base, mmap.mmap) and not array.flags.writeable


def test_every_type_and_shape_is_read_back_bit_for_bit_from_the_mapped_file(tmp_path):
    arrays = {f"{name}{shape}": values(shape, dtype) for name, dtype in DTYPES.items() for shape in SHAPES}
    path = write(tmp_path, arrays)
    assert path == tmp_path / "model.safetensors" and os.listdir(tmp_path) == [path.name]
    opened = open_tensors(path)
    assert opened.keys() == arrays.keys()
    for name, tensor in opened.items():
        assert (tensor.shape, tensor.dtype) == (arrays[name].shape, arrays[name].dtype)
        assert same(tensor.read(), arrays[name]) and in_file(tensor.read()) and tensor.read().flags.aligned


def test_arrays_outlive_the_file_they_are_views_of(tmp_path):
    path = write(tmp_path, {"a": values((1000,), np.float32)})
    first, second = (tensor.read() for _ in range(2) for tensor in [open_tensors(path)["a"]])
    again = open_tensors(path)["a"]
    assert np.shares_memory(again.read(), again.read())
    path.unlink()
    del again
    gc.collect()
    assert same(first, values((1000,), np.float32)) and same(second, first)


def test_the_library_reads_what_we_write(tmp_path):
    arrays = {f"{name}{shape}": values(shape, dtype) for name, dtype in DTYPES.items() for shape in SHAPES}
    path = write(tmp_path, arrays, metadata={"from": "jaxclip"})
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name]["dtype"] == name.partition("(")[0] and found[name]["shape"] == list(array.shape)
        assert bytes(found[name]["data"]) == array.tobytes()
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "from": "jaxclip"}


def test_we_read_what_the_library_writes(tmp_path):
    kinds = [dtype for name, dtype in DTYPES.items() if not name.startswith("F8")]
    arrays = {f"{dtype}{shape}": values(shape, dtype) for dtype in kinds for shape in SHAPES}
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata={"format": "pt"})
    opened = open_tensors(tmp_path / "x")
    assert opened.keys() == arrays.keys()
    assert all(same(tensor.read(), arrays[name]) for name, tensor in opened.items())


def test_values_at_unaligned_offsets_are_read_too(tmp_path):
    text = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    array = values((3,), np.float32)
    for spaces in range(8):
        path = tmp_path / f"{spaces}.safetensors"
        path.write_bytes((len(text) + spaces).to_bytes(8, "little") + text + b" " * spaces + array.tobytes())
        assert same(open_tensors(path)["a"].read(), array)


def test_values_are_written_as_if_contiguous(tmp_path):
    array = values((4, 6), np.float32)
    ways = {"turned": array.T, "every_second": array[:, ::2], "backwards": array[::-1], "one": array[2, 3]}
    ways = {name: np.asarray(way) for name, way in ways.items()}
    assert all(same(tensor.read(), ways[name]) for name, tensor in open_tensors(write(tmp_path, ways)).items())


# Shards


def test_shards_are_as_hugging_face_has_them(tmp_path):
    arrays = {f"t{n}": values((10,), np.float32, n) for n in range(5)} | {"large": values((40,), np.float32)}
    path = write(tmp_path / "new" / "folder", arrays, limit=100)
    assert path.name == "model.safetensors.index.json"
    index = json.loads(path.read_text())
    assert index == {
        "metadata": {"total_size": 360},
        "weight_map": {
            "t0": "model-00001-of-00004.safetensors",
            "t1": "model-00001-of-00004.safetensors",
            "t2": "model-00002-of-00004.safetensors",
            "t3": "model-00002-of-00004.safetensors",
            "t4": "model-00003-of-00004.safetensors",
            "large": "model-00004-of-00004.safetensors",
        },
    }
    assert sorted(os.listdir(path.parent)) == sorted({*index["weight_map"].values(), path.name})
    opened = open_tensors(path)
    assert list(opened) == list(arrays)
    assert all(same(tensor.read(), arrays[name]) and in_file(tensor.read()) for name, tensor in opened.items())


def test_a_file_that_just_fits_is_not_cut_into_shards(tmp_path):
    assert write(tmp_path / "one", {"a": values((25,), np.float32)}, limit=100).name == "model.safetensors"
    assert write(tmp_path / "two", {"a": values((13,), np.float32), "b": values((13,), np.float32)}, limit=100).suffix
    assert len(os.listdir(tmp_path / "two")) == 3


def test_an_index_of_many_tensors_opens(tmp_path):
    arrays = {f"layers.{n}.weight": np.float32([n]) for n in range(5000)}
    opened = open_tensors(write(tmp_path, arrays, limit=2000))
    assert len(os.listdir(tmp_path)) == 11
    assert [tensor.read().item() for tensor in opened.values()] == list(range(5000))


def test_shards_may_be_links_as_in_hugging_faces_cache(tmp_path):
    arrays = {f"t{n}": values((10,), np.float32, n) for n in range(4)}
    index = write(tmp_path / "blobs", arrays, limit=80)
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(index.parent.iterdir())):
        blob = file.rename(file.with_name(f"{number:064x}"))
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    opened = open_tensors(snapshot / index.name)
    assert all(same(opened[name].read(), array) for name, array in arrays.items())


def test_everything_that_does_not_fit_an_index_is_named_at_once(tmp_path):
    path = write(tmp_path, {f"t{n}": np.float32([n]) for n in range(6)}, limit=8)
    index = json.loads(path.read_text())
    index["weight_map"]["t9"] = index["weight_map"].pop("t1")
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index.json does not fit .* t9 \(model-00001.* t1 \(model-00001"):
        open_tensors(path)
    for shard in ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"):
        (tmp_path / shard).unlink()
    with pytest.raises(UserError, match="lists 2 of 3 shards .*model-00001-of-00003.*, model-00003-of-00003"):
        open_tensors(path)


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz_are_read_back_bit_for_bit(tmp_path, save):
    kinds = [dtype for name, dtype in DTYPES.items() if not name.startswith("F8")]
    arrays = {f"params/{dtype}/{len(shape)}{shape}": values(shape, dtype) for dtype in kinds for shape in SHAPES}
    save(tmp_path / "x.npz", **arrays)
    opened = open_tensors(tmp_path / "x.npz")
    assert list(opened) == list(arrays)
    for name, tensor in opened.items():
        assert (tensor.shape, tensor.dtype) == (arrays[name].shape, arrays[name].dtype)
        assert same(tensor.read(), arrays[name])
        assert in_file(tensor.read()) == (save is np.savez) and not tensor.read().flags.writeable


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_orders_of_values_and_bytes_are_read(tmp_path, save):
    array = values((3, 4), np.int32)
    save(tmp_path / "x.npz", fortran=np.asfortranarray(array), big=array.astype(">i4"), both=array.astype(">i4").T)
    opened = open_tensors(tmp_path / "x.npz")
    assert same(opened["fortran"].read(), array) and same(opened["big"].read(), array)
    assert same(opened["both"].read(), array.T)


@pytest.mark.parametrize("descr", ["<V2", "|V2"])
def test_two_bytes_of_no_meaning_are_bfloat16(tmp_path, descr):
    array, content = values((2, 3), BFLOAT16), io.BytesIO()
    np.save(content, array)
    assert b"<V2" in content.getvalue()  # what NumPy writes now; earlier versions of ml_dtypes gave |V2
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue().replace(b"<V2", descr.encode()))
    assert same(open_tensors(tmp_path / "x.npz")["a"].read(), array)


def test_objects_in_an_npz_are_named_as_what_they_are(tmp_path):
    np.savez(tmp_path / "x.npz", good=np.zeros(3), bad=np.array([{}, None]))
    with pytest.raises(UserError, match="x.npz, 'bad', holds Python objects, which can run code when opened"):
        open_tensors(tmp_path / "x.npz")


def test_the_format_of_a_file_is_detected_from_its_content(tmp_path):
    array = values((5,), np.float32)
    path = write(tmp_path, {"a": array})
    np.savez(tmp_path / "x.npz", a=array)
    for source, name in ((path, "x.bin"), (tmp_path / "x.npz", "y.safetensors")):
        assert same(open_tensors(source.rename(tmp_path / name))["a"].read(), array)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("zip", "is a zip archive and no .npz, because it holds '1_Pooling/', which is no array"),
        ("tar", "is a tar archive"),
        ("gztar", "is compressed by gzip"),
        ("bztar", "is compressed by bzip2"),
        ("xztar", "is compressed by xz"),
    ],
)
def test_an_archive_of_a_models_folder_is_to_be_unpacked(tmp_path, form, said):
    (tmp_path / "model" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    write(tmp_path / "model", {"a": values((5,), np.float32)})
    path = shutil.make_archive(str(tmp_path / "packed"), form, tmp_path / "model")
    with pytest.raises(UserError) as caught:
        open_tensors(pathlib.Path(path))
    assert str(caught.value) == f"{path} {said}: unpack it and give the folder, or the file of weights in it"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors is not a regular file"):
        open_tensors(tmp_path / "x.safetensors")


# Writing that fails


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 4 << 20
    tensors = [(str(n), (size,), np.dtype(np.uint8), lambda: np.ones(size, np.uint8)) for n in range(8)]
    tracemalloc.start()
    try:
        write_tensors(tmp_path, "model", tensors)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [1 << 30, 40])
def test_a_failed_write_leaves_no_files(tmp_path, limit):
    def fail():
        raise UserError("no more")

    good = [(f"t{n}", (10,), np.dtype(np.float32), lambda: np.zeros(10, np.float32)) for n in range(3)]
    with pytest.raises(UserError, match="^no more$"):
        write_tensors(tmp_path, "model", [*good, ("bad", (10,), np.dtype(np.float32), fail)], limit)
    assert not os.listdir(tmp_path)
    with pytest.raises(ValueError, match="bad is float32"):
        write_tensors(tmp_path, "model", [*good, ("bad", (9,), np.dtype(np.float32), good[0][3])], limit)
    with pytest.raises(ValueError, match="name of its own"):
        write_tensors(tmp_path, "model", [*good, good[0]], limit)
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_no_files(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Writing past this many bytes fails as it does on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(UserError, match=f"^cannot write {tmp_path}/model: File too large; make room"):
            write(tmp_path, {"a": np.zeros(10_000, np.float32), "b": np.zeros(40_000, np.float32)}, limit=80_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not os.listdir(tmp_path)


def test_weights_are_not_written_over_nor_beside_others(tmp_path):
    arrays = {"a": np.zeros(3), "b": np.zeros(3)}
    write(tmp_path / "one", arrays)
    write(tmp_path / "shards", arrays, limit=24)
    for folder in ("one", "shards"):
        for limit in (1000, 24):
            with pytest.raises(UserError, match="exists; name another folder"):
                write(tmp_path / folder, arrays, limit=limit)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^cannot write .*/file/model: "):
        write(tmp_path / "file", arrays)
