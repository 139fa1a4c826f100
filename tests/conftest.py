"""Shared test setup: eight CPU devices, quiet libraries, and shape checks of signatures."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from cpu_devices import xla_flags
from jaxtyping import install_import_hook

# All of it is read once, when jax or tensorflow is first imported, and is inherited by the commands that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# If the TPU's compiler is installed, it must not look for a TPU, and must support several processes.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}".strip()

# Indices of what tests write, and compiled steps, would pile up in the user's own caches. Compiled steps are shared by
# the workers and the commands that they start: a run that goes on has the programs of the run that was killed.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxclip-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ["JAXCLIP_CACHE"] = tempfile.mkdtemp(prefix="jaxclip-tests-")
atexit.register(shutil.rmtree, os.environ["JAXCLIP_CACHE"], ignore_errors=True)

# Must precede the first import of these packages, because it rewrites them as they load.
install_import_hook(["jaxclip.towers", "jaxclip.losses", "jaxclip.methods", "jaxclip.evaluate"], "beartype.beartype")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking through all that was imported, again and again, while jax traces."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    reasons = {}
    if not {"cuda", "gpu"} & set(os.environ["JAX_PLATFORMS"].split(",")):
        reasons["gpu"] = "run on a GPU by JAX_PLATFORMS=cuda,cpu python -m pytest -n0 -m gpu"
    if importlib.util.find_spec("libtpu") is None:
        reasons["tpu_compile"] = "libtpu is not installed: pip install -e '.[plan]'"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images beside the repository (emoji/, cifar10/, ...); skips the test if there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def peer_python() -> str:
    """The Python named by PEER_PYTHON, with open_clip and transformers; skips the test if it is not set."""
    if "PEER_PYTHON" not in os.environ:
        pytest.skip("set PEER_PYTHON to a Python that has torch, open_clip_torch and transformers")
    return os.environ["PEER_PYTHON"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the indices of one test are kept."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXCLIP_CACHE", str(folder))
    return folder


@pytest.fixture
def remote(tmp_path) -> Iterator[str]:
    """A folder of remote storage, of one test alone."""
    import fsspec

    folder = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").mkdir(folder)
    yield folder
    fsspec.filesystem("memory").rm(folder, recursive=True)
