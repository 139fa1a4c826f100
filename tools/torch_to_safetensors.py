"""Converter from PyTorch files to .safetensors that does not run code in the file.

    python tools/torch_to_safetensors.py SRC.bin DST.safetensors

Needs torch and safetensors, but not jaxclip. SRC is a state_dict, or contains one under "state_dict" or "model", as
open_clip's checkpoints do. The prefix "module." that DistributedDataParallel adds to every name is removed. torch opens
SRC with weights_only=True, and files that it rejects are rejected here.
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
    """A one-line message that states what is wrong and what to do."""


def load(path: pathlib.Path) -> Any:
    """The content of a PyTorch file. Raises Refused."""
    import torch

    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" or "/code/" in name for name in archive.namelist()):
                raise Refused(
                    f"{path} is a TorchScript archive, which is a program; download the model's .safetensors instead"
                )
    try:
        # Files from before torch 1.6 are not zip archives, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        example = f" (such as {match[1]})" if match else ""
        raise Refused(
            f"{path} was not opened: it is damaged, or contains objects{example} that could run code; "
            "use a file that contains only the state_dict"
        ) from None


def tensors_of(content: Any, path: pathlib.Path) -> dict[str, Any]:
    """The tensors in a file's content, each with its own memory. Raises Refused."""
    import torch

    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise Refused(f"{path} contains no state_dict; save only model.state_dict()")
    others = [
        ascii(name)[:80]
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided
    ]
    if others:
        raise Refused(f"{path} contains more than dense tensors: {', '.join(others[:5])}; save only model.state_dict()")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    seen = set()
    tensors = {}
    for name, value in content.items():
        place = value.untyped_storage().data_ptr()
        # safetensors does not save tensors that share memory.
        tensors[name] = value.detach().clone() if place in seen else value.detach().contiguous()
        seen.add(place)
    return tensors


def convert(source: pathlib.Path, target: pathlib.Path) -> int:
    """Converts a file atomically; returns the number of tensors. Raises Refused."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise Refused(f"{error}; use a Python that has torch and safetensors") from None
    if target.exists():
        raise Refused(f"{target} already exists; choose another file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        tensors = tensors_of(load(source), source)
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(target)
    except Refused:
        raise
    except Exception as error:  # torch and safetensors raise many exceptions for damaged files and full disks
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise Refused(f"{source} cannot be converted to {target}: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return len(tensors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, metavar="SRC")
    parser.add_argument("target", type=pathlib.Path, metavar="DST.safetensors")
    names = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's warnings about files that are rejected
    try:
        count = convert(names.source, names.target)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{names.target}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
