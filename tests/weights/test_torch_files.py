"""Files that torch has written, converted by tools/torch_to_safetensors.py, and ours read by torch."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from paths import ROOT
from written_tensors import SHAPES, values, write

from jaxclip.errors import UserError
from jaxclip.weights.formats.safetensors import DTYPES, open_tensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def peer() -> str:
    python = os.environ.get("PEER_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("torch") is None:
        pytest.skip("set PEER_PYTHON to a Python that has torch")
    return python


SAVE = """
import json, os, pickle, sys, torch
class Touch:
    def __reduce__(self):
        return os.system, ("touch trap",)
os.chdir(sys.argv[1])
model = torch.nn.Linear(3, 4)
state = model.state_dict()
state |= {"tied": state["weight"], "part": state["weight"][1:], "turned": torch.arange(6.0).reshape(2, 3).T}
state |= {"half": torch.ones(3, dtype=torch.bfloat16), "scalar": torch.tensor(2.5), "count": torch.tensor(7)}
torch.save(state, "plain.bin")
torch.save(state, "old.bin", _use_new_zipfile_serialization=False)
wrapped = {"module." + name: value for name, value in state.items()}
torch.save({"epoch": 3, "name": "x", "state_dict": wrapped, "optimizer": {"lr": 0.1}}, "wrapped.pt")
torch.save({"model": state}, "model.pth")
torch.save({"a": Touch()}, "evil.bin")
pickle.dump({"a": Touch()}, open("evil.pkl", "wb"))
torch.save(model, "whole.bin")
torch.save({"a": torch.ones(2), "b": 3}, "mixed.bin")
torch.jit.script(model).save("script.pt")
open("cut.bin", "wb").write(open("plain.bin", "rb").read()[:500])
json.dump({name: value.float().tolist() for name, value in state.items()}, open("expected.json", "w"))
"""

LOAD = """
import sys, torch
from safetensors.torch import load_file
for name, value in load_file(sys.argv[1]).items():
    content = bytes(value.reshape(-1).view(torch.uint8).tolist()).hex()
    print(name, str(value.dtype).removeprefix("torch."), tuple(value.shape), content)
"""


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([peer(), "-W", "ignore", "-c", SAVE, str(folder)], check=True, capture_output=True)
    return folder


def convert(source: pathlib.Path, target: pathlib.Path) -> subprocess.CompletedProcess:
    command = [peer(), str(ROOT / "tools/torch_to_safetensors.py"), str(source), str(target)]
    return subprocess.run(command, cwd=source.parent, capture_output=True, text=True)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["plain.bin", "old.bin", "wrapped.pt", "model.pth"])
def test_a_state_dict_is_converted(torch_files, tmp_path, name):
    ran = convert(torch_files / name, tmp_path / "x.safetensors")
    assert ran.returncode == 0, ran.stderr
    opened = open_tensors(tmp_path / "x.safetensors")
    expected = json.loads((torch_files / "expected.json").read_text())
    assert opened["half"].dtype == BFLOAT16
    assert {name: tensor.read().tolist() for name, tensor in opened.items()} == expected
    with pytest.raises(UserError, match="is a PyTorch file, which can run code"):
        open_tensors(torch_files / name)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("evil.bin", "objects (such as posix.system) that could run code"),
        ("evil.pkl", "that could run code"),
        ("whole.bin", "that could run code"),
        ("mixed.bin", "more than dense tensors: 'b'"),
        ("script.pt", "TorchScript archive"),
        ("cut.bin", "cut.bin"),
        ("missing.bin", "No such file"),
    ],
)
def test_other_content_than_a_state_dict_is_refused_in_one_line(torch_files, tmp_path, name, said):
    ran = convert(torch_files / name, tmp_path / "x.safetensors")
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert not os.listdir(tmp_path) and not (torch_files / "trap").exists()


@pytest.mark.peer
def test_torch_reads_what_we_write(tmp_path):
    kinds = {name: DTYPES[name] for name in ("F32", "F16", "BF16", "F64", "I64", "I32", "U8", "I8", "BOOL")}
    arrays = {f"{dtype}{i}": values(shape, dtype) for dtype in kinds.values() for i, shape in enumerate(SHAPES)}
    path = write(tmp_path, arrays)
    ran = subprocess.run([peer(), "-c", LOAD, str(path)], check=True, capture_output=True, text=True)
    expected = {f"{n} {a.dtype} {a.shape} {a.tobytes().hex()}" for n, a in arrays.items()}
    assert set(ran.stdout.splitlines()) == expected
