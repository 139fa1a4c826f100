"""Configs and checkpoints of version 0.1, brought to the form of this one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.errors import UserError

# A pattern in a parameter's path, and what stood there in version 0.1. The projections were parts of the towers, and
# BERT's blocks were in one stack, of which `lower` and `upper` are the first and the last rows.
OLD_PATHS: tuple[tuple[str, str], ...] = (
    (r"(^|/)image_projection/kernel$", r"\1image/projection"),
    (r"(^|/)image_projection/kernel$", r"\1image/attention_pool/out_kernel"),
    (r"(^|/)image_projection/bias$", r"\1image/attention_pool/out_bias"),
    (r"(^|/)text_projection/kernel$", r"\1text/projection"),
    (r"(^|/)text_projection/bias$", r"\1text/projection_bias"),
    (r"(^|/)text/(lower|upper)/", r"\1text/transformer/"),
)
# Of an optimizer's state, whatever transformations it is nested in: a moment of a parameter, and a number of steps.
_MOMENT = re.compile(r"^opt_state/(?:.*/)?(mu|nu)/(.+)$")
_COUNT = re.compile(r"^opt_state/(?:.*/)?count$")


def model(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a checkpoint, with the config of the run or the method alone brought to this version's form.

    What has this version's form already stays as it is.
    """
    changed = dict(saved)
    if isinstance(saved.get("config"), Mapping):
        changed["config"] = config(saved["config"])
    if isinstance(saved.get("method"), Mapping):
        changed["method"] = method(saved["method"])
    return changed


def config(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run, as config.json has it.

    >>> config({"init_only": "^image/", "optimizer": {"frozen": "^image/"}})
    {'init_only': '^image', 'optimizer': {'groups': [{'match': '^image', 'rate': 0.0}]}}
    """
    changed = dict(saved)
    if isinstance(saved.get("method"), Mapping):
        changed["method"] = method(saved["method"])
    optimizer = saved.get("optimizer")
    is_old = isinstance(optimizer, Mapping) and "frozen" in optimizer
    if isinstance(optimizer, Mapping) and is_old:
        kept = {key: value for key, value in optimizer.items() if key != "frozen"}
        frozen = optimizer["frozen"]
        changed["optimizer"] = kept | ({"groups": [{"match": pattern(frozen), "rate": 0.0}]} if frozen else {})
    if is_old and saved.get("init_only"):
        changed["init_only"] = pattern(saved["init_only"])
    return changed


def method(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a method: the projections were the towers' own, and a ModifiedResNet's always had a bias.

    >>> method({"name": "clip", "image": {"name": "vit", "projection": False}})
    {'name': 'clip', 'image': {'name': 'vit'}, 'image_projection': False}
    """
    changed = dict(saved)
    for tower, old, new in (
        ("image", "projection", "image_projection"),
        ("text", "projection_bias", "text_projection_bias"),
    ):
        keys = saved.get(tower)
        if isinstance(keys, Mapping) and old in keys:
            changed[tower] = {key: value for key, value in keys.items() if key != old}
            changed[new] = keys[old]
    image = saved.get("image")
    if isinstance(image, Mapping) and image.get("name") == "modified_resnet":
        changed.setdefault("image_projection_bias", True)
    return changed


def pattern(old: str) -> str:
    """A regular expression that finds at least the parameters that it found in version 0.1.

    >>> pattern("^image/"), pattern("^text/token_embedding")
    ('^image', '^text/token_embedding')
    """
    if old in ("^image/", "^text/"):
        return old.removesuffix("/")
    for tower in ("image", "text"):
        before, now = f"{tower}/projection", f"{tower}_projection/kernel"
        if re.search(old, before) and not re.search(old, now):
            old = f"{old}|^{tower}_projection/"
    return old


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an array of this version's state is found in an older one.

    Attributes:
      path: of the stored array.
      first: the first of its rows; None if all of the array is meant.
    """

    path: str
    first: int | None = None


def paths(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under their paths, such as "params/image/positions"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def origins(wanted: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Origin]:
    """Where each array of a state is stored.

    Args:
      wanted: the arrays, or their shapes, by path; `rate` is left out, which version 0.1 did not have.
      stored: the paths in the checkpoint.

    Raises:
      UserError: an array is stored under no name that it ever had.
    """
    names = set(stored)
    moments = {match.groups(): path for path in names if (match := _MOMENT.match(path))}
    found = {}
    for path in wanted:
        if path == "rate":
            continue
        candidates = [path, *(re.sub(new, old, path) for new, old in OLD_PATHS if re.search(new, path))]
        candidates += [moments.get(match.groups(), "") for name in candidates if (match := _MOMENT.match(name))]
        candidates += ["step"] if _COUNT.match(path) else []
        origin = next((name for name in candidates if name in names), None)
        if origin is None:
            raise UserError(f"the checkpoint has no {path}; it is of another model or of another optimizer")
        half = re.search(r"(^|/)text/(lower|upper)/", path)
        if half is None or origin == path:
            found[path] = Origin(origin)
        elif half[2] == "lower":
            found[path] = Origin(origin, 0)
        else:
            lower = wanted.get(path.replace("text/upper/", "text/lower/"))
            found[path] = Origin(origin, lower.shape[0] if lower is not None else 0)
    return found


def stored_form(wanted: Mapping[str, Any], found: Mapping[str, Origin], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What to load, by stored path: shapes, dtypes and shardings.

    Args:
      wanted: this version's, by path.
      found: of `origins`.
      shapes: the stored arrays' shapes, or anything with one, by path.
    """
    abstract: dict[str, Any] = {}
    for path, origin in found.items():
        leaf = wanted[path]
        if origin.first is not None:
            # The shard of an axis other than the first is that of both halves.
            leaf = jax.ShapeDtypeStruct(shapes[origin.path].shape, leaf.dtype, sharding=leaf.sharding)
        abstract.setdefault(origin.path, leaf)
    return abstract


def this_form(wanted: Any, found: Mapping[str, Origin], loaded: Mapping[str, Any]) -> Any:
    """This version's state.

    Args:
      wanted: a tree of shapes, dtypes and shardings.
      found: of `origins`.
      loaded: arrays by stored path.
    """

    def take(path: str, leaf: Any, loaded: Mapping[str, Any]) -> jax.Array:
        if path == "rate":
            return jnp.ones(leaf.shape, leaf.dtype)
        origin = found[path]
        array = loaded[origin.path]
        return array if origin.first is None else array[origin.first : origin.first + leaf.shape[0]]

    leaves = paths(wanted)

    def build(loaded: Mapping[str, Any]) -> list[jax.Array]:
        return [take(path, leaf, loaded) for path, leaf in leaves.items()]

    # Compiled: slices of arrays that lie on the devices of several processes.
    arrays = jax.jit(build, out_shardings=[leaf.sharding for leaf in leaves.values()])(dict(loaded))
    return jax.tree.unflatten(jax.tree.structure(wanted), arrays)
