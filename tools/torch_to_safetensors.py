"""Makes a .safetensors file of a PyTorch one, without running what may be in it.

    python tools/torch_to_safetensors.py SRC.bin DST.safetensors

Needs torch and safetensors, and nothing of jaxclip. SRC is a state_dict, or holds one under "state_dict" or "model", as
open_clip's checkpoints do; the prefix "module." that DistributedDataParallel puts before every name is taken off. torch
opens SRC with weights_only=True, and what that refuses is refused.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import sys
import warnings
import zipfile
from typing import Any


class Refused(Exception):
    """One line that says what is wrong and what to do."""


def load(path: pathlib.Path) -> Any:
    """What is in a PyTorch file. Raises Refused."""
    import torch

    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" or "/code/" in name for name in archive.namelist()):
                raise Refused(
                    f"{path} is a TorchScript archive, a program; take the same model's .safetensors from the hub"
                )
    try:
        # Files from before torch 1.6 are no zips, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f", {found[1]} among it," if found else ""
        raise Refused(
            f"{path} was not opened: it is damaged, or holds more than tensors{what} which could run code; "
            "take a file that holds the state_dict alone"
        ) from None


def tensors_of(content: Any, path: pathlib.Path) -> dict[str, Any]:
    """The tensors of what was in a file, each with memory of its own. Raises Refused."""
    import torch

    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise Refused(f"{path} holds no state_dict; save model.state_dict() alone")
    others = [
        ascii(name)[:80]
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided
    ]
    if others:
        raise Refused(f"{path} holds more than dense tensors: {', '.join(others[:5])}; save model.state_dict() alone")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    seen = set()
    tensors = {}
    for name, value in content.items():
        place = value.untyped_storage().data_ptr()
        # safetensors saves no memory twice.
        tensors[name] = value.detach().clone() if place in seen else value.detach().contiguous()
        seen.add(place)
    return tensors


def convert(source: pathlib.Path, target: pathlib.Path) -> int:
    """Writes the tensors of one file to the other, whole or not at all; gives their number. Raises Refused."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise Refused(f"{error}; run this with a Python that has torch and safetensors") from None
    if target.exists():
        raise Refused(f"{target} exists; name another file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        tensors = tensors_of(load(source), source)
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(target)
    except Refused:
        raise
    except Exception as error:  # torch and safetensors raise of every kind over damaged files and full disks
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise Refused(f"{source} cannot be made {target}: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(tensors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, metavar="SRC")
    parser.add_argument("target", type=pathlib.Path, metavar="DST.safetensors")
    names = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's, over files that are refused
    try:
        count = convert(names.source, names.target)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{names.target}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
