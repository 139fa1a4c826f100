"""Untrusted configs: a model that fits its tensors, or a one-line error.

Only the configs are changed; the tensors stay those of a small model.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from weight_layouts import shapes_of

from jaxclip import methods
from jaxclip.data import tokenizers
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.towers import TextConfig, ViTConfig
from jaxclip.towers.modified_resnet import ModifiedResNetConfig
from jaxclip.weights import public, tensor_map
from jaxclip.weights.export import save
from jaxclip.weights.families import big_vision, hugging_face
from jaxclip.weights.overrides import Answers, Questions

STRANGE = [None, -1, 0, 1 << 24, 1 << 40, 1e308, math.nan, True, [], {}, [1] * 5, "\x1b[31m\n\ud800" * 99]
OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
# Keys by which no model differs from another: one strange value is enough.
UNREAD = {"model_type", "architectures", "projection_dim", "bos_token_id", "pad_token_id", "hf_tokenizer_name", "size"}
UNREAD |= {"do_convert_rgb", "processor_class"}
NOTHING = Answers()


SHAPES = functools.cache(shapes_of)


def made(folder: pathlib.Path, form: str, image: Any) -> pathlib.Path:
    tokenizer = tokenizers.train(["a"], 514)
    text = TextConfig(tokenizer.vocab_size, context_length=8, width=8, layers=2, heads=2, activation="gelu")
    method = clip.Method(image, text, 4, image_projection_bias=isinstance(image, ModifiedResNetConfig))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), methods.abstract_variables(method))
    save(folder, form, method, tokenizer, *zeros)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    place = tmp_path_factory.mktemp("models")
    vit = ViTConfig(image_size=16, patch_size=8, width=8, layers=2, heads=2, activation="gelu")
    return {
        "openclip": made(place / "openclip", "openclip", vit),
        "huggingface": made(place / "huggingface", "huggingface", vit),
        "resnet": made(place / "resnet", "openclip", ModifiedResNetConfig(32, 16, (1, 1, 1, 1))),
    }


@pytest.fixture
def copied(folders, tmp_path):
    def copied(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(folders[name], tmp_path / name))

    return copied


def read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def places(content: Mapping[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of nested objects."""
    for key, value in content.items():
        yield (*where, key)
        if isinstance(value, Mapping):
            yield from places(value, (*where, key))


def changed(content: Any, place: tuple[str, ...], value: Any) -> Any:
    result = inner = copy.deepcopy(content)
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = value
    return result


def refusal(folder: pathlib.Path, answers: Answers = NOTHING) -> str:
    """The error for a folder; "" if it opens as a model of its tensors."""
    try:
        weights = public.open_foreign(folder, answers)
    except UserError as error:
        line = str(error)
        assert line.startswith(str(folder)) and line.isprintable() and len(line) < 1000 + len(str(folder)), line
        return line
    shapes = SHAPES(weights.method)
    # Tensors are read from the mapped file, with the shapes derived from the config.
    for piece in weights._pieces:
        assert weights._tensors[piece.name].read().shape == piece.shape(shapes[piece.path])
    return ""


def strange(content: Any, *more: str) -> Iterator[Any]:
    """The content with a strange value for one key or another, and for others that it has not."""
    for place in [*places(content), *(tuple(key.split(".")) for key in more)]:
        unread = place[-1] in UNREAD and len(place) > 1
        for value in STRANGE[-1:] if unread else STRANGE:
            yield changed(content, place, value)


CASES = {
    "openclip": (OPEN_CLIP, ["model_cfg.vision_cfg.head_width", "model_cfg.vision_cfg.timm_model_name"]),
    "huggingface": (HUGGING_FACE, ["vision_config_dict", "text_config_dict"]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_strange_value_in_a_config_opens_or_is_refused_in_one_line(copied, name):
    folder, (file, more) = copied(name), CASES[name]
    assert refusal(folder) == ""
    refused = []
    for content in strange(read(folder / file), *more):
        (folder / file).write_text(json.dumps(content))
        refused.append(bool(refusal(folder)))
    assert sum(refused) > 150 and not all(refused)


def test_every_strange_value_in_a_processors_config_opens_or_is_refused_in_one_line(copied):
    folder = copied("huggingface")
    alone, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    original = read(alone)
    alone.unlink()
    assert "preprocess=" in refusal(folder)
    refused = []
    for number, content in enumerate(strange(original, "feature_extractor_type", "do_pad", "crop_pct")):
        # The messages for both files are equal except for the name.
        file, named = ((alone, alone.name), (whole, f"{whole.name}, image_processor"))[number % 2]
        file.write_text(json.dumps(content if file == alone else {"image_processor": content}))
        said = refusal(folder)
        assert not said or named in said
        refused.append(bool(said))
        file.unlink()
    assert sum(refused) > 100 and not all(refused)
    for junk in STRANGE[1:]:
        whole.write_text(json.dumps({"image_processor": junk}))
        assert junk == {} or "processor_config.json, image_processor: it must hold keys" in refusal(folder)


def test_image_preprocessing_is_read_from_the_file_that_transformers_uses(copied):
    folder = copied("huggingface")
    alone, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    content = read(alone)
    whole.write_text(json.dumps({"image_processor": {**content, "resample": 2}, "processor_class": "CLIPProcessor"}))
    assert public.open_foreign(folder, Answers()).method.pixels.interpolation == "bilinear"
    whole.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert public.open_foreign(folder, Answers()).method.pixels.interpolation == "bicubic"


LARGEST = 1 << 24
IMPOSSIBLE = [
    ("resnet", {"vision_cfg.layers": [250] * 4}, "layers is 1000"),
    ("resnet", {"vision_cfg.layers": [LARGEST - 1] * 4}, "layers is"),
    ("resnet", {"text_cfg.layers": 1000}, "layers is 1000"),
    ("openclip", {"vision_cfg.layers": 1000}, "layers is 1000"),
    ("resnet", {"vision_cfg.width": LARGEST, "vision_cfg.image_size": LARGEST}, "which no file holds"),
    (
        "openclip",
        {"vision_cfg.width": LARGEST // 8, "vision_cfg.patch_size": 1, "vision_cfg.image_size": LARGEST},
        "which no file holds",
    ),
    (
        "openclip",
        {"text_cfg.width": LARGEST // 8, "text_cfg.heads": 1, "text_cfg.vocab_size": LARGEST},
        "no file holds",
    ),
    (
        "openclip",
        {
            "vision_cfg.timm_model_name": "vit_base_patch16_siglip_224.\x1b[31mRED\nsecond" + "A" * 3000,
            "vision_cfg.timm_pool": "map",
            "vision_cfg.image_size": 99,
        },
        r'timm_model_name="vit_base_patch16_siglip_224.\\u001b\[31mRED\\nsecondA+',
    ),
]


@pytest.mark.parametrize(("name", "changes", "said"), IMPOSSIBLE)
def test_impossible_sizes_are_refused_before_anything_is_built(copied, name, changes, said):
    folder = copied(name)
    content = read(folder / OPEN_CLIP)
    for place, value in changes.items():
        content = changed(content, ("model_cfg", *place.split(".")), value)
    (folder / OPEN_CLIP).write_text(json.dumps(content))
    line = refusal(folder)
    with pytest.raises(UserError, match=said):
        raise UserError(line)


def test_products_of_sizes_that_are_each_possible_are_refused(copied):
    folder = copied("huggingface")
    content = read(folder / HUGGING_FACE)
    for tower in ("text_config", "vision_config"):
        content[tower] |= {"hidden_size": LARGEST, "intermediate_size": LARGEST}
    (folder / HUGGING_FACE).write_text(json.dumps(content))
    assert "which no file holds" in refusal(folder)


def test_texts_are_pooled_at_the_configs_end_token(copied):
    folder = copied("huggingface")
    content = read(folder / HUGGING_FACE)
    for value, said in ((513, ""), (2, ""), (512, "eos_token_id=512 must be 513, the end token"), (None, "=null must")):
        (folder / HUGGING_FACE).write_text(json.dumps(changed(content, ("text_config", "eos_token_id"), value)))
        line = refusal(folder)
        assert said in line if said else line == ""
    folder = copied("openclip")
    content = read(folder / OPEN_CLIP)
    for text, said in (
        ({"pool_type": "eos", "eos_id": 513}, ""),
        ({"pool_type": "eos", "eos_id": 512}, "text_cfg.eos_id=512 must be 513"),
    ):
        content["model_cfg"]["text_cfg"] |= text
        (folder / OPEN_CLIP).write_text(json.dumps(content))
        line = refusal(folder)
        assert said in line if said else line == ""


def test_a_setting_that_is_in_the_folder_is_refused_unless_answers_are_not_binding(copied):
    for name in ("openclip", "huggingface"):
        folder = copied(name)
        for answers in (Answers(activation="gelu_tanh"), Answers(preprocess="siglip"), Answers(heads="4,4")):
            assert "itself" in refusal(folder, answers)
            free = public.open_foreign(folder, answers, answers_binding=False)
            assert free.method == public.open_foreign(folder, Answers()).method
        # Another vocabulary may always be named.
        assert refusal(folder, Answers(tokenizer=folder)) == ""


@pytest.mark.parametrize(("patch", "grid", "asked"), [(14, 27, True), (14, 16, False), (16, 27, False)])
def test_big_visions_image_size_is_asked_for_if_two_sizes_fit_the_patches(patch, grid, asked):
    block = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "model_type": "siglip",
        "vision_config": block | {"image_size": patch * grid, "patch_size": patch},
        "text_config": block | {"vocab_size": 30, "max_position_embeddings": 6},
    }
    answers = Answers(preprocess="siglip")
    method = methods.from_config(hugging_face.describe("it", config, None, Questions("it", answers)))
    arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes_of(method).items()}
    tensors = {name: values() for name, _, _, values in tensor_map.write(arrays, big_vision.pieces(method, {}))}
    questions = Questions("it", answers)
    keys = big_vision.describe("it", tensors, questions)
    if asked:
        with pytest.raises(UserError, match="give image_size=378 or 384"):
            questions.check(keys)
        questions = Questions("it", Answers(preprocess="siglip", image_size=384))
        keys = big_vision.describe("it", tensors, questions)
    questions.check(keys)
    assert keys["image"]["image_size"] == (384 if asked else patch * grid)
