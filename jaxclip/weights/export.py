"""Export of weights in the formats of open_clip, Hugging Face and jaxclip."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax

from jaxclip import checkpoint, methods
from jaxclip.data.tokenizers import Tokenizer, virtex
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.weights import tensor_map
from jaxclip.weights.families import hugging_face, open_clip
from jaxclip.weights.families.hugging_face import files
from jaxclip.weights.formats.safetensors_writer import write_tensors

Form = Literal["jaxclip", "openclip", "huggingface"]


def save(
    folder: pathlib.Path,
    form: Form,
    method: Any,
    tokenizer: Tokenizer | None,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
) -> None:
    """Writes a model into a new folder.

    Args:
      folder: the folder to create; existing content is never changed.
      form: "jaxclip", a checkpoint for `jaxclip.load` and `config.init_from`; "openclip", for
        `open_clip.create_model_and_transforms("local-dir:FOLDER")`; "huggingface", for `CLIPModel` or
        `SiglipModel.from_pretrained(FOLDER)` and `AutoProcessor`.
      method: the model's method.
      tokenizer: the model's tokenizer; None if the method has no texts.
      params, stats: nested dicts of arrays.

    Raises:
      UserError: the form does not support the model, or the folder already exists or cannot be written.
    """
    if form == "jaxclip":
        model: dict[str, Any] = {"method": methods.to_config(method)}
        if tokenizer is not None:
            model["tokenizer"] = tokenizer.to_json()
        with new_folder(folder) as unfinished:
            checkpoint.save_variables(unfinished, params, stats, model)
        return
    check_new(folder)
    # Raises for a model that the form does not support, before anything is written.
    if not isinstance(method, clip.Method) or tokenizer is None:
        raise UserError(f"{form} has no models of this method; write the form jaxclip")
    if isinstance(tokenizer, virtex.VirTexTokenizer):
        raise UserError(f"{form} has no vocabularies of VirTex's form; write the form jaxclip")
    _FAMILIES[form].config_of(method, tokenizer)
    with new_folder(folder) as unfinished:
        unfinished.mkdir()
        _FORMS[form](unfinished, method, tokenizer, tensor_map.flat(params) | tensor_map.flat(stats))


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to create a folder at, which gets its name if the block does not raise.

    Raises:
      UserError: the folder already exists or cannot be written.
    """
    check_new(folder)
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        yield unfinished
        unfinished.replace(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_new(folder: pathlib.Path) -> None:
    """Raises UserError if a folder that is to be created already exists and is not empty."""
    try:
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from None
    if taken:
        raise UserError(f"{folder} already exists; choose a new folder")


def _save_open_clip(folder: pathlib.Path, method: Any, tokenizer: Tokenizer, arrays: Mapping[str, jax.Array]) -> None:
    config = open_clip.config_of(method, tokenizer)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    files.write_tokenizer(folder, method, tokenizer)
    extras = [
        (name, value.shape, value.dtype, lambda value=value: value) for name, value in open_clip.extras(method).items()
    ]
    # open_clip opens only a single file.
    write_tensors(
        folder, "open_clip_model", [*tensor_map.write(arrays, open_clip.pieces(method)), *extras], limit=1 << 62
    )


def _save_hugging_face(
    folder: pathlib.Path, method: Any, tokenizer: Tokenizer, arrays: Mapping[str, jax.Array]
) -> None:
    files.write_files(folder, method, tokenizer)
    write_tensors(folder, "model", tensor_map.write(arrays, hugging_face.pieces(method)))


_FAMILIES: dict[str, Any] = {"openclip": open_clip, "huggingface": hugging_face}
_FORMS = {"openclip": _save_open_clip, "huggingface": _save_hugging_face}
