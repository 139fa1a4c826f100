"""open_clip's and OpenAI's weights: published models from configs and bare files, and errors for others."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import pytest
from open_clip_published import ANSWERS, PUBLISHED, described, method_of, published
from weight_layouts import Tensor, assert_covered_once, shapes_of, tensors_for

from jaxclip import methods
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.wordpiece import from_vocabulary
from jaxclip.errors import UserError
from jaxclip.weights import tensor_map
from jaxclip.weights.families import open_clip
from jaxclip.weights.overrides import Answers, Questions


def bare(method: Any) -> dict[str, Tensor]:
    """What a file of a model holds."""
    return tensors_for(open_clip.pieces(method), shapes_of(method))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_a_model_of_the_published_size(name):
    config, image, total = PUBLISHED[name]
    params, _ = methods.abstract_variables(method_of(config))
    sizes = {path: math.prod(leaf.shape) for path, leaf in tensor_map.flat(params).items()}
    assert sum(size for path, size in sizes.items() if path.startswith(("image/", "image_projection/"))) == image
    assert sum(sizes.values()) == total


def test_what_no_shape_tells_is_as_published():
    towers = {name: method_of(PUBLISHED[name][0]) for name in PUBLISHED}
    heads = {name: (tower.image.heads, tower.text.heads) for name, tower in towers.items()}
    assert heads["ViT-B-32"] == (12, 8) and heads["ViT-L-14"] == (16, 12)
    assert heads["ViT-H-14"] == heads["ViT-g-14"] == heads["ViT-SO400M-14-SigLIP"] == (16, 16)
    assert heads["ViT-bigG-14"] == heads["ViT-e-14"] == (16, 20)
    assert towers["RN50x4"].image.heads == 40
    activations = {name: (getattr(t.image, "activation", None), t.text.activation) for name, t in towers.items()}
    assert activations["ViT-B-32"] == activations["ViT-B-16-SigLIP"] == ("gelu", "gelu")
    assert activations["ViT-B-16"] == ("quick_gelu", "quick_gelu")
    # timm gives its B/16 the exact function whatever the weights were trained with.
    assert activations["ViT-B-16-SigLIP2"] == ("gelu", "gelu_tanh")
    assert activations["ViT-B-32-SigLIP2-256"] == activations["ViT-gopt-16-SigLIP2-384"] == ("gelu_tanh", "gelu_tanh")
    one, other = towers["ViT-B-32"], towers["ViT-B-16-SigLIP"]
    assert (one.image.eps, one.text.eps, one.text.causal, one.text.pool) == (1e-5, 1e-5, True, "end")
    assert (other.image.eps, other.text.eps, other.text.causal, other.text.pool) == (1e-6, 1e-6, False, "last")


SHALLOW = {
    "RN50": {},
    "RN50x4": {"text__layers": 1},
    "ViT-B-32": {"vision__layers": 3, "text__layers": 2},
    "ViT-H-14": {"vision__layers": 2, "text__layers": 3},
    "ViT-g-14": {"vision__layers": 2, "text__layers": 1},
    "ViT-bigG-14": {"vision__layers": 2, "text__layers": 1},
    "ViT-B-16-SigLIP": {"text__layers": 2},
    "ViT-SO400M-14-SigLIP": {"text__layers": 1},
}


@pytest.mark.parametrize("name", SHALLOW)
def test_every_number_of_a_model_is_in_one_tensor(name):
    method = method_of(published(name, **SHALLOW[name]))
    assert_covered_once(open_clip.pieces(method), shapes_of(method))


@pytest.mark.parametrize(
    "changes", [{"text__proj_bias": True}, {"vision__no_ln_pre": True}, {"init_logit_bias": -10}, {"quick_gelu": True}]
)
def test_every_number_of_an_unpublished_mixture_is_in_one_tensor(changes):
    method = method_of(published("ViT-B-32", vision__layers=1, text__layers=1, **changes))
    assert_covered_once(open_clip.pieces(method), shapes_of(method))


def test_each_batch_norm_has_its_count_beside_it():
    extras = open_clip.extras(method_of(published("RN50", text__layers=1)))
    # The stem's 3, 3 of each of 16 bottlenecks, and one of each stage's shortcut.
    assert len(extras) == 3 + 3 * 16 + 4
    assert {"visual.bn1.num_batches_tracked", "visual.layer4.0.downsample.1.num_batches_tracked"} <= set(extras)
    assert open_clip.extras(method_of(published("ViT-B-32", text__layers=1))) == {}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "ViT-SO400M-14-SigLIP-384"])
def test_the_shapes_of_a_bare_file_determine_the_same_model_as_its_config(name):
    method = method_of(PUBLISHED[name][0])
    activations = f"{getattr(method.image, 'activation', 'gelu')},{method.text.activation}"
    questions = Questions("it", Answers(activation=activations, preprocess="clip"))
    found = open_clip.describe("it", bare(method), None, questions)
    questions.check(found)
    assert methods.from_config(found) == method


def test_the_image_size_is_asked_for_if_two_published_sizes_fit_the_patches():
    tensors = bare(method_of(PUBLISHED["ViT-SO400M-14-SigLIP-384"][0]))
    asked = Questions("it", ANSWERS)
    with pytest.raises(UserError, match="give image_size=378 or 384"):
        asked.check(open_clip.describe("it", tensors, None, asked))
    # Positions are resized to any other, and then it does not matter which it was.
    for answer, size in ((378, 378), (384, 384), (224, 378)):
        questions = Questions("it", dataclasses.replace(ANSWERS, image_size=answer))
        found = open_clip.describe("it", tensors, None, questions)
        questions.check(found)
        assert (found["image"]["image_size"], methods.from_config(found).image.grid) == (size, 27)


def test_heads_are_asked_for_at_unpublished_widths_and_an_answer_takes_precedence():
    def found(answer: Any, binding: bool = True, **changes: Any) -> Any:
        tensors = bare(method_of(published("ViT-B-32", vision__layers=1, text__layers=1, **changes)))
        questions = Questions("it", dataclasses.replace(ANSWERS, heads=answer), binding=binding)
        keys = open_clip.describe("it", tensors, None, questions)
        questions.check(keys)
        return keys["image"]["heads"], keys["text"]["heads"]

    assert [found(answer) for answer in (None, 6, "6", "6,16", ",16")] == [(12, 8), (6, 8), (6, 8), (6, 16), (12, 16)]
    wide = {"text__width": 960, "text__heads": 15, "vision__width": 1152}
    assert found("18,15", **wide) == found("18,15", binding=False, **wide) == (18, 15)
    # Published values take precedence over defaults.
    assert found("6,16", binding=False) == (12, 8)
    for answer, asked in (
        (None, "heads=IMAGE,TEXT, the numbers of the image tower of width 1152 and of the text tower of width 960"),
        (18, "heads=18,TEXT, .*width 960"),
        (",15", "heads=IMAGE, .*width 1152"),
    ):
        with pytest.raises(UserError, match=asked):
            found(answer, **wide)
    for wrong in (0, -1, "", ",", "a", "1,2,3", "1, 2", True, 1.5, "9" * 9):
        with pytest.raises(UserError, match="heads="):
            Answers(heads=wrong)


def test_a_setting_that_is_in_the_config_is_refused_with_its_value():
    config = {"model_cfg": PUBLISHED["ViT-B-16"][0], "preprocess_cfg": {}}
    for answers, said in [
        (
            Answers(activation="gelu"),
            r"^it says its activation itself \(quick_gelu\): leave activation out$",
        ),
        (Answers(preprocess="clip"), "^it says its preprocess itself .*: leave preprocess out$"),
        (Answers(heads=6), r"^it says its heads of the image tower itself \(12\)"),
        (Answers(heads=",6"), r"^it says its heads of the text tower itself \(8\)"),
    ]:
        questions = Questions("it", answers)
        found = open_clip.describe("it", {}, config, questions)
        with pytest.raises(UserError, match=said):
            questions.check(found)
        free = Questions("it", answers, binding=False)
        free.check(open_clip.describe("it", {}, config, free))
        assert found == open_clip.describe("it", {}, config, Questions("it", Answers()))
    questions = Questions("it", Answers(tokenizer="elsewhere.json", image_size=336))
    questions.check(open_clip.describe("it", {}, config, questions))


def test_texts_are_pooled_at_the_same_token_as_in_open_clip():
    def check(vocabulary: Any, **text: Any) -> None:
        changes = {f"text__{key}": value for key, value in text.items()}
        open_clip.check_end("it", {"model_cfg": published("ViT-B-32", **changes)}, vocabulary)

    clips = tokenizers.train(["a"], 514)  # its end token is the last id, 513
    words = from_vocabulary("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    check(clips)
    check(clips, pool_type="eos", eos_id=513)
    check(words, pool_type="eos", eos_id=3)
    check(words, pool_type="last")
    for vocabulary, text, said in [
        (words, {}, 'pool_type="argmax" must be "eos" with eos_id=3: .* which may be 6,'),
        (words, {"pool_type": "eos", "eos_id": 2}, "eos_id=2 must be 3,"),
        (words, {"pool_type": "eos"}, "eos_id=2 must be 3,"),
        (clips, {"pool_type": "eos", "eos_id": 513.0}, "eos_id=513.0 must be 513,"),
    ]:
        with pytest.raises(UserError, match=said):
            check(vocabulary, **text)


def test_a_bare_file_does_not_say_its_activation_and_its_preprocessing():
    tensors = bare(method_of(published("ViT-B-32", vision__width=1100, vision__head_width=50)))
    questions = Questions("it", Answers())
    found = open_clip.describe("it", tensors, None, questions)
    with pytest.raises(UserError, match="activation=.*heads=.*1100.*preprocess="):
        questions.check(found)


def test_other_spellings_of_the_names_are_the_same_tensors():
    for name in ("RN50", "ViT-B-32", "ViT-B-16-SigLIP"):
        method = method_of(published(name, text__layers=1))
        tensors = bare(method)
        text = [name for name in tensors if not name.startswith(("visual.", "logit"))]
        counts = {name: Tensor(()) for name in open_clip.extras(method)}
        sizes = {name: Tensor(()) for name in ("input_resolution", "context_length", "vocab_size", "attn_mask")}
        assert open_clip.names(tensors | counts | sizes) == tensors
        assert open_clip.names({f"module.{name}": tensor for name, tensor in tensors.items()}) == tensors
        other = {f"text.{name}".replace("text.text.", "") if name in text else name: tensors[name] for name in tensors}
        assert set(other) != set(tensors) and open_clip.names(other) == tensors


def test_a_name_that_is_there_in_both_forms_is_not_lost():
    tensors = bare(method_of(published("ViT-B-32", text__layers=1)))
    both = tensors | {"text.positional_embedding": Tensor((1, 1))}
    assert {"positional_embedding", "text.positional_embedding"} <= set(open_clip.names(both))


@pytest.mark.parametrize("name", ["token_embedding.weight", "visual.conv1.weight", "text_projection"])
def test_a_bare_file_without_a_tensor_that_determines_a_size_is_refused_by_name(name):
    tensors = bare(method_of(published("ViT-B-32", text__layers=1)))
    for shape in (None, (), (0, 0), (0, 3, 1, 1)):
        wrong = {key: tensor for key, tensor in tensors.items() if key != name}
        if shape is not None:
            wrong[name] = Tensor(shape)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            open_clip.describe("it", wrong, None, Questions("it", ANSWERS))


def test_a_bare_file_of_another_kind_is_refused():
    method = method_of(published("ViT-B-32", text__layers=1))
    no_square = bare(method) | {"visual.positional_embedding": Tensor((42, 768))}
    no_ln_pre = {name: tensor for name, tensor in bare(method).items() if ".ln_pre." not in name}
    for tensors, reason in [(no_square, "no square"), (no_ln_pre, "CLIPA"), ({"x": Tensor((1,))}, "no tensor")]:
        with pytest.raises(UserError, match=reason):
            open_clip.describe("it", tensors, None, Questions("it", ANSWERS))


CANNOT = [
    ("ViT-B-32", "vision__attentional_pool", True),
    ("ViT-B-32", "vision__ls_init_value", 1e-4),
    ("ViT-B-32", "vision__pool_type", "avg"),
    ("ViT-B-32", "vision__pos_embed_type", "sin_cos_2d"),
    ("ViT-B-32", "vision__qk_norm", True),
    ("ViT-B-32", "vision__scale_fc", True),
    ("ViT-B-32", "vision__image_size", [224, 336]),
    ("ViT-B-32", "vision__act_kwargs", {"approximate": "sigmoid"}),
    ("ViT-B-32", "vision__norm_kwargs", {"bias": False}),
    ("ViT-B-32", "vision__head_width", 7),
    ("ViT-B-32", "vision__something_new", 1),
    ("ViT-B-32", "text__hf_model_name", "roberta-base"),
    ("ViT-B-32", "text__embed_cls", True),
    ("ViT-B-32", "text__pool_type", "first"),
    ("ViT-B-32", "text__proj_type", "none"),
    ("ViT-B-32", "text__heads", 7),
    ("ViT-B-32", "multimodal_cfg", {"width": 512}),
    ("ViT-B-32", "new_switch", True),
    ("ViT-B-16", "text__act_kwargs", {"approximate": "tanh"}),
    ("RN50", "vision__head_width", 32),
    ("RN50", "vision__layers", [3, 4, 6]),
    ("ViT-B-16-SigLIP", "vision__timm_model_name", "convnext_base"),
    ("ViT-B-16-SigLIP", "vision__timm_model_name", "vit_base_patch16_siglip_gap_224"),
    ("ViT-B-16-SigLIP", "vision__timm_pool", "avg"),
    ("ViT-B-16-SigLIP", "vision__timm_proj", "mlp"),
    ("ViT-B-16-SigLIP", "vision__timm_proj_bias", True),
    ("ViT-B-16-SigLIP", "vision__image_size", 256),
]


@pytest.mark.parametrize(("name", "key", "value"), CANNOT)
def test_unsupported_values_are_refused_by_name_and_value(name, key, value):
    with pytest.raises(UserError) as error:
        described(published(name, **{key: value}))
    message = str(error.value)
    assert message.startswith("it: ") and key.rpartition("__")[2] in message and "\n" not in message
    assert key in ("vision__something_new", "new_switch") or json.dumps(value) in message


JUNK = [
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    0.5,
    True,
    math.inf,
    math.nan,
    10**400,
    -(10**400),
    [1] * 5,
    ["x"] * 4,
    [[1]],
    {"x": 1},
]


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_values_without_sense_end_in_a_user_error_or_a_model(name):
    model = published(name, quick_gelu=False, vision__mlp_ratio=4.0, vision__patch_dropout=0.0, vision__head_width=64)
    keys = [*model, *(f"{part}__{key}" for part in ("vision", "text") for key in model[f"{part}_cfg"])]
    refused = 0
    for key in [*keys, *(f"{part}__{key}" for part in ("vision", "text") for key in ("act_kwargs", "norm_kwargs"))]:
        for junk in JUNK:
            changed = copy.deepcopy(model)
            part, _, inner = key.rpartition("__")
            (changed[f"{part}_cfg"] if part else changed)[inner] = junk
            try:
                methods.from_config(described(changed))
            except UserError as error:
                refused += 1
                assert len(str(error)) < 1500 and "\n" not in str(error)
    assert refused > 200
    for junk in JUNK:
        with pytest.raises(UserError):
            described(junk)


def test_preprocessing_is_the_configs_with_open_clips_own_defaults():
    def pixels(**preprocess: Any) -> Any:
        return method_of(published("ViT-B-32"), {"size": 224, **preprocess}).pixels

    assert pixels() == method_of(published("ViT-B-32")).pixels
    assert (pixels().resize, pixels().interpolation) == ("crop", "bicubic")
    assert pixels().mean == (0.48145466, 0.4578275, 0.40821073)
    squashed = pixels(mean=[0.5, 0.5, 0.5], std=0.5, resize_mode="squash", interpolation="bilinear", mode="RGB")
    assert (squashed.mean, squashed.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (squashed.resize, squashed.interpolation) == ("squash", "bilinear")
    assert pixels(interpolation="random", std=None).interpolation == "bicubic"
    for key, value in [("resize_mode", "longest"), ("interpolation", "nearest"), ("mode", "L"), ("std", [0, 1, 1])]:
        with pytest.raises(UserError, match=f"preprocess_cfg.{key}="):
            pixels(**{key: value})
    for junk in JUNK:
        for key in ("interpolation", "resize_mode", "mode"):
            if junk is not None:
                with pytest.raises(UserError, match=f"preprocess_cfg.{key}="):
                    pixels(**{key: junk})
        for key in ("mean", "std"):
            if junk not in (-1, 0, 0.5) or junk is True:
                with pytest.raises(UserError, match=f"preprocess_cfg.{key}="):
                    pixels(**{key: [junk, 1, 1]})


def test_a_config_without_preprocessing_asks_for_it():
    questions = Questions("it", Answers())
    found = open_clip.describe("it", {}, {"model_cfg": PUBLISHED["ViT-B-32"][0]}, questions)
    with pytest.raises(UserError, match="preprocess="):
        questions.check(found)
