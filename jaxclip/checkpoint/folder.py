"""One checkpoint: its folder, and the arrays and values in it, compared with their fingerprints when they are read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from jaxclip import upgrade
from jaxclip.checkpoint.fingerprint import fingerprints
from jaxclip.errors import UserError
from jaxclip.io import first_few, one_line, printable

STATE, MODEL = "state", "model"


class Damaged(UserError):
    """A checkpoint does not hold what was saved.

    Attributes:
      path: its folder.
      reason: what is wrong, without the path.
    """

    def __init__(self, path: pathlib.Path, reason: str):
        others = [
            step for step in steps(path.parent) if str(step) != path.name and is_complete(path.parent / str(step))
        ]
        other = f", or take another one by step={others[0]} (--step={others[0]})" if others else ""
        super().__init__(f"{path} is damaged: {reason}; copy all of it again{other}")
        self.path, self.reason = path, reason


def is_complete(path: pathlib.Path) -> bool:
    """Whether a folder has both parts of a checkpoint."""
    return (path / MODEL).is_dir() and (path / STATE).is_dir()


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a folder, the newest first, whether they are whole or not."""
    return sorted((int(child.name) for child in folder.glob("*") if child.name.isdigit()), reverse=True)


def find(path: pathlib.Path, step: int | None = None) -> pathlib.Path | None:
    """The folder of one checkpoint: `path` itself, or one in a run's workdir; None if there is none.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint.
      step: which one of a run; None for the newest.

    Raises:
      Damaged: the newest is not whole.
      UserError: there is no checkpoint of that step.
    """
    if is_complete(path) and step is None:
        return path
    for folder in (path / "checkpoints", path):
        found = steps(folder)
        # Folders with numbers for names are checkpoints if one of them looks like one.
        if not found or (folder == path and not any(is_complete(folder / str(number)) for number in found)):
            continue
        if step is not None and step not in found:
            raise UserError(f"{path} has no checkpoint of step {step}; there are {', '.join(map(str, found))}")
        chosen = folder / str(found[0] if step is None else step)
        _check_complete(chosen)
        return chosen
    if step is not None:
        raise UserError(f"step={step}: {path} is no run of ours, which alone have steps")
    return None


def _check_complete(path: pathlib.Path) -> None:
    lacking = [part for part in (STATE, MODEL) if not (path / part).is_dir()]
    if lacking:
        raise Damaged(path, f"its folder {' and its folder '.join(lacking)} is missing")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax raises into Damaged, except where the machine is at fault and not the checkpoint."""
    _hide_late_reads()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax raises many different exceptions for missing or damaged files.
        root, reason = root_of(error)
        if isinstance(root, MemoryError) or "RESOURCE_EXHAUSTED" in reason:
            raise
        denied = isinstance(root, OSError) and root.errno in (errno.EACCES, errno.EPERM, errno.EMFILE)
        if denied or "PERMISSION_DENIED" in reason:
            raise UserError(f"{path} cannot be read: {reason}") from error
        raise Damaged(path, reason) from error


def root_of(error: BaseException) -> tuple[BaseException, str]:
    """The exception that Orbax wrapped in others, whose messages hold whole trees, and what it says in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = one_line(error)
    # TensorStore names the file and the source line at length; the system's own words come last.
    if match := re.search(r"([A-Z][^:\[\]]*) \[os_error_code", text):
        return error, match[1]
    return error, printable(text, 200) or type(error).__name__


@functools.cache
def _hide_late_reads() -> None:
    """Keeps quiet about reads that end after Orbax has given up, dozens of them for one damaged file."""
    printing = sys.excepthook

    def print_others(kind: Any, error: BaseException, trace: Any) -> None:
        if str(error) != "Event loop is closed":
            printing(kind, error, trace)

    sys.excepthook = print_others


def _partial() -> ocp.Context:
    """Settings by which parts of a tree may be read."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def load_model(path: pathlib.Path) -> dict[str, Any]:
    """The JSON values saved with a checkpoint, in this version's form.

    Raises:
      Damaged: they cannot be read, or are not what was saved.
    """
    return upgrade.model(_read_values(path)[0])


def _read_values(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON values of a checkpoint, and its arrays' fingerprints; version 0.1 wrote none."""
    _check_complete(path)
    with _reading(path):
        stored = ocp.load_checkpointables(path.absolute(), {MODEL: None})[MODEL]
    if not isinstance(stored, Mapping) or "json" not in stored and "config" not in stored and "method" not in stored:
        raise Damaged(path, "its folder model holds neither a config nor a method")
    if "json" not in stored:
        return dict(stored), {}
    if stored.get("sha256") != _digest(str(stored["json"])):
        raise Damaged(path, "config, tokenizer or fingerprints are not what was saved")
    content = json.loads(stored["json"])
    return content["values"], content["fingerprints"]


def load_state(path: pathlib.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the state in a checkpoint's folder, by name, sharded as the abstract ones; an old form is converted.

    Raises:
      Damaged: arrays cannot be read, or are not what was saved.
      UserError: the state is that of another model or of another optimizer.
    """
    path = path.absolute()
    _, prints = _read_values(path)
    with _reading(path), _partial():
        metadata = ocp.metadata(path, STATE).metadata
    stored, wanted = upgrade.paths(metadata), upgrade.paths(dict(abstract))
    if lost := sorted(prints.keys() - stored.keys()):
        raise Damaged(path, f"it lacks {first_few(lost)}")
    if wanted.keys() <= stored.keys():
        found = None
        form = wanted
    else:
        found = upgrade.origins(wanted, stored)
        form = upgrade.stored_form(wanted, found, stored)
    for name, leaf in form.items():
        if tuple(stored[name].shape) != _stored_shape(leaf):
            raise UserError(
                f"{path}: {name} has the shape {tuple(stored[name].shape)} and not {_stored_shape(leaf)}; the "
                f"checkpoint is of another model"
            )
    arrays = read_arrays(path, metadata, form)
    verify_arrays(path, arrays, prints)
    arrays = {name: _as_asked(array, form[name]) for name, array in arrays.items()}
    if found is not None:
        return upgrade.this_form(dict(abstract), found, arrays)
    return jax.tree.unflatten(jax.tree.structure(dict(abstract)), [arrays[name] for name in wanted])


def load_variables(path: pathlib.Path, params: Any, stats: Any, averaged: bool = False) -> tuple[Any, Any]:
    """Only the parameters and the batch statistics, sharded as the abstract ones.

    Args:
      path: the folder of the checkpoint.
      params, stats: abstract arrays.
      averaged: whether to load the moving average of the parameters.

    Raises:
      Damaged: arrays cannot be read, or are not what was saved.
      UserError: the checkpoint is that of another model.
    """
    name = "average" if averaged else "params"
    loaded = load_state(path, _with_stats({name: params}, stats))
    return loaded[name], loaded.get("stats", {})


def read_arrays(path: pathlib.Path, metadata: Any, form: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays of a checkpoint by their stored paths, sharded as in `form` and of the dtypes that they were saved with.

    Args:
      path: of the checkpoint.
      metadata: Orbax's tree of what is stored.
      form: what to read: `jax.ShapeDtypeStruct`s by path.

    Raises:
      Damaged: they cannot be read.
    """

    def choose(place: tuple, stored: Any) -> Any:
        leaf = form.get(jax.tree_util.keystr(place, simple=True, separator="/"))
        if leaf is None:
            return ocp.PLACEHOLDER
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, stored.dtype, sharding=leaf.sharding)

    with _reading(path), _partial():
        # Orbax takes a placeholder for an array within a part of the state, not for a part.
        wanted = {name.partition("/")[0] for name in form}
        parts = {part: content for part, content in metadata.items() if part in wanted}
        tree = jax.tree_util.tree_map_with_path(choose, parts)
        loaded = upgrade.paths(ocp.load_checkpointables(path, {STATE: tree})[STATE])
    arrays = {name: loaded.get(name) for name in form}
    if empty := [name for name, array in arrays.items() if not isinstance(array, jax.Array)]:
        raise Damaged(path, f"it lacks {first_few(empty)}")
    return {name: array for name, array in arrays.items() if isinstance(array, jax.Array)}


def verify_arrays(path: pathlib.Path, arrays: Mapping[str, jax.Array], prints: Mapping[str, str]) -> None:
    """Raises Damaged if an array is not the one that was saved. Without fingerprints there is nothing to compare."""
    if not prints:
        return
    found = fingerprints({name: array for name, array in arrays.items() if name in prints})
    if different := sorted(name for name, value in found.items() if value != prints[name]):
        raise Damaged(path, f"other numbers than were saved: {first_few(different)}")


def verify(path: pathlib.Path) -> tuple[int, bool]:
    """Reads every array of a checkpoint, a gigabyte at a time, onto one device.

    Returns:
      The number of arrays, and whether there were fingerprints to compare them with.

    Raises:
      Damaged: something cannot be read, or is not what was saved.
    """
    path = path.absolute()
    _, prints = _read_values(path)
    with _reading(path), _partial():
        metadata = ocp.metadata(path, STATE).metadata
    stored = upgrade.paths(metadata)
    if lost := sorted(prints.keys() - stored.keys()):
        raise Damaged(path, f"it lacks {first_few(lost)}")
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    group: dict[str, Any] = {}
    size = 0
    for number, (name, leaf) in enumerate(stored.items(), 1):
        group[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        size += math.prod(leaf.shape) * leaf.dtype.itemsize
        if size > 1 << 30 or number == len(stored):
            verify_arrays(path, read_arrays(path, metadata, group), prints)
            group, size = {}, 0
    return len(stored), bool(prints)


def save_variables(path: pathlib.Path, params: Any, stats: Any, values: dict[str, Any], average: Any = None) -> None:
    """Writes a checkpoint without optimizer state: weights, and JSON values as in `Checkpoints.save`."""
    state = _with_stats({"params": params}, stats) | ({"average": average} if average else {})
    ocp.save_checkpointables(path.absolute(), checkpointables(state, values))


def checkpointables(packed: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What Orbax writes: the arrays, and the JSON values with a digest and the arrays' fingerprints.

    Args:
      packed: the parts of a state by name.
      values: the config and so on.
    """
    content = {"values": dict(values), "fingerprints": fingerprints(upgrade.paths(dict(packed)))}
    text = json.dumps(content, ensure_ascii=False)
    return {STATE: dict(packed), MODEL: {"json": text, "sha256": _digest(text)}}


def pack(state: Any) -> dict[str, Any]:
    """The fields of a state by name, without empty ones, which a checkpoint cannot store."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def unpack(loaded: Mapping[str, Any], like: Any) -> Any:
    """A state from its fields by name.

    Args:
      loaded: of `load_state`.
      like: a state with the same structure.
    """
    empty: dict[str, Any] = {field.name: {} for field in dataclasses.fields(like)}
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(type(like)(**empty | dict(loaded))))


def _with_stats(packed: dict[str, Any], stats: Any) -> dict[str, Any]:
    # Most models have none, and their checkpoints do not contain them.
    return packed | ({"stats": stats} if stats else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stored_shape(leaf: Any) -> tuple[int, ...]:
    """The shape by which an array is stored: a random key is two words."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jax.eval_shape(jax.random.key_data, leaf).shape
    return tuple(leaf.shape)


def _as_asked(array: jax.Array, leaf: Any) -> jax.Array:
    """The array in the dtype that is asked for, which may be another than the stored one."""
    if array.dtype == leaf.dtype:
        return array
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # What says that the words are a key is in a file that Orbax does without.
        return jax.device_put(jax.random.wrap_key_data(array), leaf.sharding)
    return jax.device_put(array.astype(leaf.dtype), leaf.sharding)
