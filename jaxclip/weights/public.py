"""Opening of third-party weights: detection of the format, model config, and mapping of tensors to parameters."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxclip import methods, sharding
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.io import first_few
from jaxclip.methods.clip import Method
from jaxclip.weights import one_tower, tensor_map
from jaxclip.weights.checked_json import LARGEST
from jaxclip.weights.families import big_vision, hugging_face, open_clip
from jaxclip.weights.formats.safetensors import Stored, open_tensors
from jaxclip.weights.overrides import Answers, Questions
from jaxclip.weights.tensor_map import Piece

_ACCEPTED = (
    "accepted are a run's workdir or checkpoint, a Hugging Face folder of a CLIPModel or SiglipModel, an open_clip "
    "folder, OpenAI's or open_clip's .safetensors, and a big_vision .npz"
)
_MOST_JSON = 4 << 20  # bytes of a config
_FEWEST = 9  # tensors per layer: a ResNet's bottleneck has at least 9, a transformer's block more
_MOST_SCANNED = 1000  # layers stacked in one set of tensors; towers have a few dozen at most


@dataclasses.dataclass(frozen=True)
class ForeignWeights:
    """Weights in files, of which only names, types and shapes have been read.

    Attributes:
      source: the path, for messages.
      method: the method of the model.
      tokenizer: the model's tokenizer; None if the files have none and none is needed.
      config: None, because such files do not contain the config of a run.
    """

    source: str
    method: Method
    tokenizer: Tokenizer | None
    _tensors: Mapping[str, Stored]
    _pieces: list[Piece]
    config: None = None

    def read(self, mesh: Mesh, dtype: Any = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and batch statistics on the devices of a mesh, read one array at a time.

        Args:
          mesh: the devices; arrays are sharded by the rules of `jaxclip.sharding`.
          dtype: the dtype of the parameters; scalars and batch statistics are always float32.
        """
        abstract = sharding.placed(mesh, *methods.abstract_variables(self.method), dtype)
        leaves = [tensor_map.flat(part) for part in abstract]
        arrays = tensor_map.read(self._tensors, self._pieces, leaves[0] | leaves[1])
        params, stats = ({path: arrays[path] for path in part} for part in leaves)
        return tensor_map.nested(params), tensor_map.nested(stats)


def open_foreign(
    path: str | os.PathLike[str], answers: Answers, *, tokenizer_needed: bool = True, answers_binding: bool = True
) -> ForeignWeights:
    """Opens public weights.

    Args:
      path: a Hugging Face folder of a CLIPModel or SiglipModel, an open_clip folder, a .safetensors of OpenAI's or
        open_clip's, or a big_vision .npz.
      answers: settings that the files may omit.
      tokenizer_needed: whether a missing vocabulary is an error.
      answers_binding: whether an answer is an error if the files contain the setting; otherwise the files take
        precedence. An answer for the tokenizer is never an error.

    Raises:
      UserError: the path is none of these, its content is invalid, or a setting is missing.
    """
    path = pathlib.Path(os.fspath(path)).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; {_ACCEPTED}")
    questions = Questions(str(path), answers, binding=answers_binding)
    config: dict[str, Any] | None = None
    if path.is_dir() and (path / "open_clip_config.json").is_file():
        tensors = open_clip.names(
            open_tensors(weight_file(path, "open_clip_model", "open_clip_pytorch_model", "model"))
        )
        config = read_json(path / "open_clip_config.json")
        described = open_clip.describe(str(path), tensors, config, questions)
        family: Any = open_clip
    elif path.is_dir() and (path / "config.json").is_file():
        found = open_tensors(weight_file(path, "model"))
        one_tower.refuse(path, found)
        tensors = hugging_face.names(found)
        config = read_json(path / "config.json")
        described = hugging_face.describe(str(path), config, _preprocessor(path), questions)
        family = hugging_face
    elif path.is_dir():
        raise UserError(f"{path} has neither checkpoints/ nor open_clip_config.json nor config.json; {_ACCEPTED}")
    else:
        found = open_tensors(path)
        if any(name.startswith(("vision_model.", "text_model.")) for name in found):
            raise UserError(
                f"{path} is of Hugging Face's form, and its config.json says what model it is: give the folder"
            )
        one_tower.refuse(path, found)
        family = big_vision if any(name.split("/")[0] in ("params", "img", "txt") for name in found) else open_clip
        tensors = family.names(found)
        if family is open_clip and not any(name.startswith("visual.") for name in tensors):
            raise UserError(f"{path} is no model that jaxclip knows: it has {first_few(list(found), 3)}; {_ACCEPTED}")
        if family is big_vision:
            described = big_vision.describe(str(path), tensors, questions)
        else:
            described = open_clip.describe(str(path), tensors, None, questions)
    tokenizer = _tokenizer(path if path.is_dir() else None, described["text"], questions, tokenizer_needed)
    questions.check(described)
    method = build(str(path), described, len(tensors), scanned=family is big_vision)
    listed = big_vision.pieces(method, tensors) if family is big_vision else family.pieces(method)
    shapes = {
        name: leaf.shape for name, leaf in tensor_map.flat(methods.joined(*methods.abstract_variables(method))).items()
    }
    tensor_map.check(str(path), tensors, listed, shapes)
    if tokenizer is not None and tokenizer.vocab_size > method.text.vocab_size:
        raise UserError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} ids, and the text tower only {method.text.vocab_size}"
        )
    # Without a config, texts are pooled at the vocabulary's end token.
    if tokenizer is not None and config is not None:
        family.check_end(str(path), config, tokenizer)
    return ForeignWeights(str(path), method, tokenizer, tensors, listed)


def build(source: str, described: Mapping[str, Any], tensors: int, *, scanned: bool = False) -> Any:
    """The method of an untrusted description.

    Raises:
      UserError: the description is invalid, or does not fit the number of tensors.
    """
    check_numbers(source, described, tensors, scanned=scanned)
    try:
        return methods.from_config(described)
    except UserError as error:
        raise UserError(f"{source}: {str(error).replace('config.method.', '')}") from None


def check_numbers(source: str, described: Mapping[str, Any], tensors: int, *, scanned: bool = False) -> None:
    """Checks the numbers of a description before they determine time or memory.

    Args:
      source: the path of the weights, for messages.
      described: the keys of a method or a tower.
      tensors: the number of tensors in the weights.
      scanned: whether all layers may be stacked in one set of tensors.

    Raises:
      UserError: a number is larger than the tensors allow.
    """
    for key, value in described.items():
        if isinstance(value, Mapping):
            check_numbers(source, value, tensors, scanned=scanned)
            continue
        numbers = [item for item in (value if isinstance(value, tuple | list) else [value]) if _is_number(item)]
        most = max(tensors // _FEWEST, _MOST_SCANNED if scanned else 0) if key == "layers" else LARGEST
        if sum(numbers) > most:
            raise UserError(f"{source}: it says {key} is {sum(numbers):.6g}, which its {tensors} tensors cannot be")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
      UserError: the file cannot be read, is too large, or contains something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise ValueError(f"more than {_MOST_JSON >> 20} MiB")
        content = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as JSON ({reason}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return content


def has_tokenizer(folder: pathlib.Path) -> bool:
    """Whether a folder contains a tokenizer."""
    names = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
    return any((folder / name).is_file() for name in names)


def weight_file(folder: pathlib.Path, *stems: str) -> pathlib.Path:
    """The path of a folder's tensors: one file, or the index of several."""
    for stem in stems:
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if (folder / name).is_file():
                return folder / name
    others = sorted(name for kind in ("*.bin", "*.pt", "*.pth") for name in folder.glob(kind))
    if others:
        return others[0]  # opening it raises an error with advice
    raise UserError(f"{folder} has no {stems[0]}.safetensors: copy all of the folder")


def _preprocessor(folder: pathlib.Path) -> tuple[str, Any] | None:
    """The image preprocessing of a Hugging Face folder, with the name of its file; as chosen by transformers."""
    whole, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    if whole.is_file() and (part := read_json(whole).get("image_processor")) is not None:
        return f"{whole.name}, image_processor", part
    return (alone.name, read_json(alone)) if alone.is_file() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _tokenizer(
    folder: pathlib.Path | None, text: Mapping[str, Any], questions: Questions, needed: bool
) -> Tokenizer | None:
    """The tokenizer of weights with a text tower of these keys; None if there is none."""
    source = questions.answers.tokenizer
    if source is None and folder is not None and has_tokenizer(folder):
        source = folder
    if source is not None:
        clean = _cleaning(folder)
        # open_clip has transformers' tokenizers, for which it has a cleaning, and its own, which pads with id 0.
        is_theirs = folder is not None and (clean is not None or not (folder / "open_clip_config.json").is_file())
        named = is_theirs and (not text["causal"] or text["pool"] != "end")  # whether the text tower sees the padding
        return tokenizers.load(source, clean=clean, named_padding=named)
    if needed:
        questions.ask(
            "tokenizer=PATH of its vocabulary (for OpenAI's and LAION's models bpe_simple_vocab_16e6.txt.gz, in the "
            "folder clip/ of github.com/openai/CLIP)"
        )
    return None


def _cleaning(folder: pathlib.Path | None) -> str | None:
    """The text cleaning before tokenization in an open_clip folder; None for other folders.

    Raises:
      UserError: jaxclip does not support the cleaning.
    """
    if folder is None or not (folder / "open_clip_config.json").is_file():
        return None
    path = folder / "open_clip_config.json"
    text = read_json(path)["model_cfg"]["text_cfg"]  # the structure has been validated by `describe`
    options, mode = text.get("tokenizer_kwargs") or {}, text.get("tokenizer_mode")
    # open_clip's default tokenizer is OpenAI's.
    named = bool(text.get("hf_tokenizer_name"))
    known = ("whitespace", "lower", "canonicalize") if named else ("lower",)
    clean = options.get("clean", known[0]) if isinstance(options, dict) else None
    if clean not in known or mode or any(value for key, value in options.items() if key != "clean"):
        said = json.dumps({"tokenizer_kwargs": options, "tokenizer_mode": mode})[:200]
        raise UserError(f"{path} has text_cfg {said}, where jaxclip has nothing but clean={' or '.join(known)}")
    return clean if named else None
