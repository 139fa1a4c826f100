"""Suites: tables of data sets that a model is evaluated on, with the figure that is quoted of each."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import pathlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.data.sources import benchmark_folder, open_source
from jaxclip.data.storage import exists, resolve
from jaxclip.errors import UserError
from jaxclip.parsing import parse

_FOLDER = pathlib.Path(__file__).parent / "suites"
_SETS = _FOLDER / "sets.toml"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of a suite, a table of its TOML file.

    Attributes:
      data: where the images are that a model is evaluated on: sources as `jaxclip.data.sources.open_source` has them,
        of which the first one that exists is used.
      train: likewise of those that probes learn from.
      task: what is evaluated if the person does not say.
      classes: of zero-shot classification, unless the data have class names of their own: a file, or the name of a list
        of `jaxclip.evaluate.prompts`.
      templates: likewise.
      metric: the figure that is quoted; of several, their mean.
    """

    data: tuple[str, ...]
    train: tuple[str, ...] = ()
    task: str = "zeroshot_classification"
    classes: str = ""
    templates: tuple[str, ...] = ()
    metric: tuple[str, ...] = ()


def known() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml") if path != _SETS)


def read(suite: str) -> dict[str, DataSet]:
    """The data sets of a suite by name.

    Args:
      suite: a name of `known`, or the path of a TOML file. That has a table for each data set, whose keys are those of
        `DataSet`, and may name known ones by `sets = ["food101", ...]`. A table of a known set has priority over it.

    Raises:
      UserError: there is no such suite, or the file is wrong.
    """
    path = _FOLDER / f"{suite}.toml" if suite in known() else pathlib.Path(suite)
    where = f"--suite={suite}"
    if path.suffix != ".toml":
        near = difflib.get_close_matches(suite, known(), 1)
        hint = f"did you mean {near[0]}?" if near else f"known ones are {', '.join(known())}"
        raise UserError(f"{where}: there is no such suite; {hint} (or give a FILE.toml)")
    own, standard = _tables(path, where), _tables(_SETS, where)
    names = own.pop("sets", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: sets must be a list of names")
    found: dict[str, DataSet] = {}
    for name in [*names, *(name for name in own if name not in names)]:
        if name not in own and name not in standard:
            near = difflib.get_close_matches(name, standard, 1)
            hint = f"did you mean {near[0]}?" if near else f"add a table [{name}]"
            raise UserError(f"{where}: {name} is not known; {hint}")
        found[name] = _data_set(f"{where}: {name}", own.get(name, standard.get(name)))
    if not found:
        raise UserError(f'{where} names no data set; add a table such as [cifar10] with data = "cifar10/val-*.tar"')
    return found


def suits(one: DataSet, task: str, keys: Mapping[str, Any]) -> bool:
    """Whether a task, whose keys these are, can be evaluated on a data set, if it exists."""
    if task == one.task:
        return True
    if "train" in keys:
        return bool(one.train)
    # The other tasks are about classes, whose names they take, or about captions.
    return one.task == ("zeroshot_classification" if "classes" in keys else "zeroshot_retrieval")


def evaluation(
    one: DataSet, task: str, keys: Mapping[str, Any], options: Mapping[str, Any], root: str
) -> dict[str, Any]:
    """What is to be evaluated of a data set, as `config.evals` writes it; empty if its data do not exist.

    Args:
      one: the data set.
      task: to be evaluated.
      keys: of the task, with their types; see `jaxclip.evaluate.keys`.
      options: values of the person for keys of the task.
      root: the folder that relative paths start from.

    Raises:
      UserError: the data exist and cannot be opened.
    """
    data = existing(one.data, root)
    found: dict[str, Any] = {"task": task, "data": data}
    if "train" in keys:
        found["train"] = existing(one.train, root)
    if not all(found.values()):
        return {}
    own = benchmark_folder.find(resolve(data, root))
    for key, value in (("classes", one.classes), ("templates", one.templates)):
        if key in keys and value and not (own and own.class_names):
            found[key] = value
    return found | {key: _for_set(key, value, one) for key, value in options.items() if key in keys}


def _for_set(key: str, value: Any, one: DataSet) -> Any:
    """An option of the person for one set: of a file with the prompts of several sets, those of this one.

    CLIP_benchmark's files call a set as its folders do: flowers in wds_vtab-flowers. open_clip's is about ImageNet.
    """
    if key != "prompts" or ".py" in str(value):
        return value if key != "prompts" or one.classes.startswith("imagenet") else ""
    name = _PUBLISHED.match(one.data[0])
    return f"{value}:{name[1]}" if name else value


_PUBLISHED = re.compile(r"wds_(?:vtab-)?([^/]+)")


def existing(sources: Sequence[str], root: str) -> str:
    """The first of several sources that exists; empty if none does.

    Raises:
      UserError: one exists and cannot be opened.
    """
    for source in sources:
        try:
            open_source(source, root=root)
        except UserError:
            # What is there and cannot be opened has to be mended, and not to be fetched.
            if not source.startswith("tfds:") and _is_there(resolve(source.partition("[")[0], root)):
                raise
        else:
            return source
    return ""


def _is_there(path: str) -> bool:
    return exists(path) or exists(f"{path}/nshards.txt") or bool(glob.glob(path))


def _tables(path: pathlib.Path, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{where}: {path} is not TOML: {error}") from None


def _data_set(where: str, table: Any) -> DataSet:
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table, [NAME] with data = SOURCE")
    several = {"data", "train", "templates", "metric"}
    fields = {key: (value,) if key in several and isinstance(value, str) else value for key, value in table.items()}
    return parse(
        DataSet, {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}, where
    )
