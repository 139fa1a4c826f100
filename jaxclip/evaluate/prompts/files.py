"""Files with class names and phrases as other projects publish them: CLIP_benchmark's and open_clip's."""

from __future__ import annotations

import ast
import json
import pathlib
from typing import Any

from jaxclip.config import check_templates
from jaxclip.errors import UserError
from jaxclip.evaluate.prompts.prompt_set import PromptSet, nearest

_CLASSES = "classnames.json"
_TEMPLATES = "zeroshot_classification_templates.json"


def read_prompts(path: str, dataset: str = "") -> PromptSet:
    """The class names and phrases of a data set in a published file; either may be absent.

    Args:
      path: CLIP_benchmark's en_classnames.json or en_zeroshot_classification_templates.json, or those of another
        language: the other one is looked for beside it. Or a folder that holds the English ones. Or open_clip's
        zero_shot_metadata.py, which is read as text and never run.
      dataset: the data set's key in the JSON files; of zero_shot_metadata.py, a constant's name in small letters and
        without its _templates or _classnames, such as openai_imagenet. May be empty if there is only one.

    Raises:
      UserError: a file does not exist or has another form, has no such data set, or a phrase of it has no `{c}`.
    """
    file = pathlib.Path(path)
    try:
        classes, templates = _constants(file) if file.suffix == ".py" else _json_pair(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for a file of class names and phrases") from None
    keys = sorted(classes.keys() | templates.keys())
    if not keys:
        raise UserError(f"{path} has neither class names nor phrases")
    if not dataset and len(templates or classes) > 1:
        raise UserError(f"{path} has several data sets; add one as {path}:{keys[0]}, or {', '.join(keys[1:])}")
    dataset = dataset or next(iter(templates or classes))
    if dataset not in keys:
        raise UserError(f"{path} has no data set {dataset}; {nearest(dataset, keys)}")
    # The one list of class names in open_clip's file belongs to all of its lists of phrases.
    owner = next((key for key in classes if file.suffix == ".py" and dataset.endswith(f"_{key}")), dataset)
    found = PromptSet(
        _strings(classes.get(owner, []), f"{path}: the class names of {owner}"),
        _strings(templates.get(dataset, []), f"{path}: the phrases of {dataset}"),
        source=f"{dataset} in {path}",
    )
    check_templates(path, found.templates)
    return found


def _json_pair(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two files of CLIP_benchmark's form, of which one may be absent."""
    if path.is_dir():
        language, folder = "en_", path
    else:
        kind = next((kind for kind in (_CLASSES, _TEMPLATES) if path.name.endswith(kind)), None)
        if kind is None:
            raise UserError(
                f"{path} must be a folder, a file named ..._{_CLASSES} or ..._{_TEMPLATES}, or open_clip's "
                "zero_shot_metadata.py"
            )
        language, folder = path.name.removesuffix(kind), path.parent
    files = [folder / f"{language}{kind}" for kind in (_CLASSES, _TEMPLATES)]
    if not any(file.exists() for file in files):
        raise UserError(f"{folder} has no {files[0].name} and no {files[1].name}")
    classes, templates = (_read_json(file) if file.exists() else {} for file in files)
    return classes, templates


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a list by data set")
    return content


def _constants(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constants NAME_CLASSNAMES and NAME_TEMPLATES of a Python file, which is not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{path} is not Python: {error}") from None
    classes: dict[str, Any] = {}
    templates: dict[str, Any] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List(elts=items) | ast.Tuple(elts=items)):
                if name.endswith("_CLASSNAMES"):
                    classes[name.removesuffix("_CLASSNAMES").lower()] = [_constant(item) for item in items]
                elif name.endswith("_TEMPLATES"):
                    templates[name.removesuffix("_TEMPLATES").lower()] = [_phrase(item, path) for item in items]
    return classes, templates


def _constant(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _phrase(node: ast.expr, path: pathlib.Path) -> str:
    """The phrase of `lambda c: f'a photo of a {c}.'`."""
    match node:
        case ast.Lambda(args=ast.arguments(args=[ast.arg(arg=name)]), body=ast.JoinedStr(values=parts)):
            texts = [_part(part, name) for part in parts]
            if None not in texts:
                return "".join(map(str, texts))
    raise UserError(f"line {node.lineno} of {path} must be a phrase such as lambda c: f'a photo of a {{c}}.'")


def _part(node: ast.expr, name: str) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=used), conversion=-1, format_spec=None) if used == name:
            return "{c}"
    return None


def _strings(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where} must be a list of texts")
    return tuple(values)
