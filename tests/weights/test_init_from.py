"""config.init_from: bit-exact copies of selected arrays, fresh values for the others, and errors for differences."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from commands import environment, recipe, run
from PIL import Image
from safetensors.numpy import save_file

from jaxclip import checkpoint, methods, optimizer, sharding
from jaxclip.config import Config, MeshConfig, OptimizerConfig
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.clip import END, START, SYMBOLS, ClipTokenizer
from jaxclip.errors import UserError
from jaxclip.parsing import parse
from jaxclip.step import Step, TrainState
from jaxclip.weights import export, tensor_map
from jaxclip.weights.init_from import start_from

TOKENIZER = ClipTokenizer({token: i for i, token in enumerate([*SYMBOLS, START, END])}, [])
# In a bare file, the number of a text tower's heads follows from its width if they are 64 wide.
TEXT = {"vocab_size": len(SYMBOLS) + 2, "context_length": 8, "width": 64, "layers": 2, "heads": 1}
IMAGE = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
CLIP = {"name": "clip", "embed_dim": 16, "image": IMAGE, "text": TEXT}
FORMS = ("jaxclip", "openclip", "huggingface", "bare")


@functools.cache
def mesh() -> Any:
    return sharding.create(MeshConfig(fsdp=2), jax.devices()[:4])


def variables(keys: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Random parameters and batch statistics of a method's config."""
    rng = np.random.default_rng(seed)
    abstract = sharding.placed(mesh(), *methods.abstract_variables(methods.from_config(keys)))
    return jax.tree.map(
        lambda leaf: jax.device_put(rng.standard_normal(leaf.shape).astype(np.float32), leaf.sharding), abstract
    )


def source(folder: pathlib.Path, form: str, keys: dict[str, Any] = CLIP) -> tuple[str, dict[str, np.ndarray]]:
    """Writes a model of random numbers; its path, and its arrays by path."""
    params, stats = variables(keys, 1)
    target = "openclip" if form == "bare" else form
    export.save(folder / "source", target, methods.from_config(keys), TOKENIZER, params, stats)
    path = folder / "source"
    if form == "bare":
        path = (path / "open_clip_model.safetensors").rename(folder / "bare.safetensors")
    return str(path), arrays(params) | arrays(stats)


def arrays(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tensor_map.flat(tree).items()}


def started(
    init_from: str, keys: dict[str, Any] = CLIP, init_only: str = "", tokenizer: Any = TOKENIZER
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """What a run with this recipe begins with, what it would begin with without a source, and how much was taken."""
    config = parse(
        Config,
        {
            "seed": 0,
            "steps": 1,
            "batch_size": 8,
            "data": {"train": "shapes", "train_vocabulary": 300},
            "method": keys,
            "optimizer": {"learning_rate": 1e-3},
            "init_from": init_from,
            "init_only": init_only,
        },
    )
    fresh = TrainState(np.int32(0), *variables(keys, 2), (), jax.random.key(0))
    state, taken = start_from(config, methods.from_config(keys), mesh(), tokenizer, fresh)
    for found, expected in zip(*map(jax.tree.leaves, (state, fresh)), strict=True):
        assert not isinstance(expected, jax.Array) or found.sharding == expected.sharding
    assert (state.step, state.opt_state, state.key) == (fresh.step, fresh.opt_state, fresh.key)
    return arrays(state.params) | arrays(state.stats), arrays(fresh.params) | arrays(fresh.stats), taken


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *but: str) -> None:
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        if path not in but:
            np.testing.assert_array_equal(found[path], values, err_msg=path)


def changed(**keys: Any) -> dict[str, Any]:
    """The recipe with other keys, such as image__width=8."""
    result = CLIP | {part: dict(CLIP[part]) for part in ("image", "text")}
    for key, value in keys.items():
        part, _, name = key.partition("__")
        if name:
            result[part] = result.get(part, {}) | {name: value}
        else:
            result[part] = value
    return result


# ------------------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("form", FORMS)
def test_all_parameters_are_copied_bit_for_bit(form, tmp_path):
    path, theirs = source(tmp_path, form)
    found, _, taken = started(path)
    assert_equal(found, theirs)
    assert taken == sum(values.size for values in theirs.values())


@pytest.mark.parametrize("init_only", ["^image/", "^text/.*kernel$", "^logit_scale$"])
def test_parameters_that_do_not_match_stay_fresh(init_only, tmp_path):
    path, theirs = source(tmp_path, "openclip")
    found, fresh, taken = started(path, init_only=init_only)
    chosen = {name for name in theirs if re.search(init_only, name)}
    assert 0 < len(chosen) < len(theirs)
    assert_equal(found, {name: (theirs if name in chosen else fresh)[name] for name in fresh})
    assert taken == sum(theirs[name].size for name in chosen)


def test_batch_statistics_are_copied_too(tmp_path):
    resnet = {"name": "modified_resnet", "image_size": 32, "width": 2, "layers": (1, 1, 1, 1)}
    keys = changed(image=resnet, image_projection_bias=True)
    path, theirs = source(tmp_path, "openclip", keys)
    found, fresh, _ = started(path, keys, init_only="^image/")
    assert_equal(found, {name: (theirs if name.startswith("image/") else fresh)[name] for name in fresh})
    assert "image/bn1/mean" in theirs


@pytest.mark.parametrize("form", ["jaxclip", "huggingface"])
def test_positions_are_resized_to_other_images_and_contexts(form, tmp_path):
    path, theirs = source(tmp_path, form)
    found, _, _ = started(path, changed(image__image_size=48, text__context_length=4))
    assert_equal(found, theirs | {name: found[name] for name in ("image/positions", "text/positions")})
    # Half as many text positions: each is between two old ones.
    np.testing.assert_allclose(found["text/positions"], theirs["text/positions"].reshape(4, 2, 64).mean(1), atol=1e-6)
    positions = found["image/positions"]
    np.testing.assert_array_equal(positions[0], theirs["image/positions"][0])
    grid = theirs["image/positions"][1:].reshape(4, 4, 32)
    # Pillow's bicubic kernel is antialiased as well.
    expected = [np.asarray(Image.fromarray(grid[..., i]).resize((6, 6), Image.Resampling.BICUBIC)) for i in range(32)]
    np.testing.assert_allclose(positions[1:], np.stack(expected, -1).reshape(36, 32), atol=1e-5)


def test_other_ways_to_run_the_same_tower_do_not_matter(tmp_path):
    path, theirs = source(tmp_path, "jaxclip")
    found, _, _ = started(path, changed(image__scan=False, image__patch_drop=0.5, text__remat="full"))
    assert_equal(found, theirs)


def test_siglip_may_start_from_clip_but_for_its_bias(tmp_path):
    path, theirs = source(tmp_path, "openclip")
    found, fresh, _ = started(path, changed(name="siglip"), init_only="^(?!logit)")
    assert_equal(found, theirs | {name: fresh[name] for name in ("logit_scale", "logit_bias")})


# ----------------------------------------------------------------------------------------- one tower alone


def resnet_file(folder: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    """torchvision's names and layouts, of a tiny ResNet with its classifier; and what it is here."""
    rng = np.random.default_rng(3)
    theirs: dict[str, np.ndarray] = {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    ours: dict[str, np.ndarray] = {}

    def conv(name: str, path: str, inputs: int, outputs: int, size: int) -> None:
        kernel = rng.standard_normal((outputs, inputs, size, size)).astype(np.float32)
        theirs[f"{name}.weight"] = kernel
        ours[f"image/{path}_kernel"] = np.moveaxis(kernel, (0, 1), (3, 2))

    def norm(name: str, path: str, channels: int) -> None:
        theirs[f"{name}.num_batches_tracked"] = np.array(7)
        for kind, own in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
            theirs[f"{name}.{kind}"] = ours[f"image/{path}/{own}"] = rng.standard_normal(channels).astype(np.float32)

    conv("conv1", "conv1", 3, 2, 7)
    norm("bn1", "bn1", 2)
    inputs = 2
    for stage, planes in enumerate((2, 4, 8, 16), 1):
        name, path, outputs = f"layer{stage}.0", f"layer{stage}_0", 4 * planes
        for number, (before, after, size) in enumerate(
            [(inputs, planes, 1), (planes, planes, 3), (planes, outputs, 1)]
        ):
            conv(f"{name}.conv{number + 1}", f"{path}/conv{number + 1}", before, after, size)
            norm(f"{name}.bn{number + 1}", f"{path}/bn{number + 1}", after)
        conv(f"{name}.downsample.0", f"{path}/downsample", inputs, outputs, 1)
        norm(f"{name}.downsample.1", f"{path}/downsample_bn", outputs)
        inputs = outputs
    save_file(theirs, folder / "resnet.safetensors")
    return str(folder / "resnet.safetensors"), ours


RESNET = changed(image={"name": "resnet", "image_size": 64, "layers": (1, 1, 1, 1), "width": 2})


def test_an_image_tower_starts_from_torchvisions_resnet(tmp_path):
    path, ours = resnet_file(tmp_path)
    found, fresh, taken = started(path, RESNET, init_only="^image/")
    assert_equal(found, fresh | ours)
    assert taken == sum(values.size for values in ours.values()) > 0


BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgnopstw'!,.", "dog", "##s", "blue"]
BERT_TEXT = {"name": "bert", "vocab_size": len(BERT_WORDS), "context_length": 6, "width": 16, "layers": 2, "heads": 2}
BERT = changed(text=BERT_TEXT)


def bert_folder(folder: pathlib.Path, **config: Any) -> tuple[str, dict[str, np.ndarray]]:
    """A BertForPreTraining's folder as Hugging Face has it, of twelve positions; and what it is here."""
    rng = np.random.default_rng(4)
    theirs = {"cls.predictions.bias": np.zeros(len(BERT_WORDS), np.float32)}
    ours: dict[str, Any] = {}

    def draw(name: str, *shape: int) -> np.ndarray:
        theirs[f"bert.{name}"] = rng.standard_normal(shape).astype(np.float32)
        return theirs[f"bert.{name}"]

    rows = {"word": ("token_embedding", len(BERT_WORDS)), "position": ("positions", 12), "token_type": ("segments", 2)}
    for name, (path, count) in rows.items():
        ours[f"text/{path}"] = draw(f"embeddings.{name}_embeddings.weight", count, 16)
    ours |= {
        f"text/ln_embedding/{path}": draw(f"embeddings.LayerNorm.{name}", 16)
        for name, path in (("gamma", "scale"), ("beta", "bias"))
    }
    draw("pooler.dense.weight", 16, 16)
    blocks: list[dict[str, np.ndarray]] = []
    for number in range(2):
        layer = f"encoder.layer.{number}"
        kernel = lambda name, *shape, layer=layer: draw(f"{layer}.{name}.weight", *shape).T  # noqa: E731
        vector = lambda name, size, kind="bias", layer=layer: draw(f"{layer}.{name}.{kind}", size)  # noqa: E731
        qkv = [f"attention.self.{name}" for name in ("query", "key", "value")]
        blocks.append(
            {
                "qkv_kernel": np.concatenate([kernel(name, 16, 16) for name in qkv], axis=1),
                "qkv_bias": np.concatenate([vector(name, 16) for name in qkv]),
                "attention_out_kernel": kernel("attention.output.dense", 16, 16),
                "attention_out_bias": vector("attention.output.dense", 16),
                "ln_1/scale": vector("attention.output.LayerNorm", 16, "gamma"),
                "ln_1/bias": vector("attention.output.LayerNorm", 16, "beta"),
                "mlp_in_kernel": kernel("intermediate.dense", 64, 16),
                "mlp_in_bias": vector("intermediate.dense", 64),
                "mlp_out_kernel": kernel("output.dense", 16, 64),
                "mlp_out_bias": vector("output.dense", 16),
                "ln_2/scale": vector("output.LayerNorm", 16, "gamma"),
                "ln_2/bias": vector("output.LayerNorm", 16, "beta"),
            }
        )
    for half, block in zip(("lower", "upper"), blocks, strict=True):
        ours |= {f"text/{half}/blocks/{name}": values[None] for name, values in block.items()}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    counts = {"vocab_size": len(BERT_WORDS), "max_position_embeddings": 12, "hidden_act": "gelu"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} | sizes | counts | config))
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    save_file(theirs, folder / "model.safetensors")
    return str(folder), ours


TAKEN = "^text/"


def test_a_text_tower_starts_from_bert_with_the_first_of_its_positions(tmp_path):
    path, ours = bert_folder(tmp_path)
    ours["text/positions"] = ours["text/positions"][:6]
    found, fresh, _ = started(path, BERT, TAKEN, tokenizers.load(tmp_path))
    assert_equal(found, fresh | ours)


def test_two_towers_start_from_a_source_each(tmp_path):
    text, text_arrays = bert_folder(tmp_path / "bert")
    text_arrays["text/positions"] = text_arrays["text/positions"][:6]
    image, image_arrays = resnet_file(tmp_path)
    keys = RESNET | {"text": BERT_TEXT | {"pool": "max"}}
    found, fresh, taken = started(f"{image} + {text}", keys, tokenizer=tokenizers.load(tmp_path / "bert"))
    assert_equal(found, fresh | image_arrays | text_arrays)
    assert taken == sum(values.size for values in (image_arrays | text_arrays).values())


def test_sources_that_are_joined_are_different_single_towers_that_are_taken(tmp_path):
    image, _ = resnet_file(tmp_path)
    whole, _ = source(tmp_path, "jaxclip")
    for joined, only, said in (
        (f"{image} + {whole}", "", "source is no single tower, and only those are joined"),
        (f"{image} + {image}", "", "is the image tower, which is not taken or given twice"),
        (f"{image} + {image}", "^text/", "is the image tower, which is not taken or given twice"),
    ):
        with pytest.raises(UserError, match=said):
            started(joined, RESNET, only)


def test_the_first_positions_of_a_longer_bert_checkpoint_are_copied(tmp_path):
    longer = changed(text=BERT_TEXT | {"context_length": 12})
    path, theirs = source(tmp_path, "jaxclip", longer)
    found, _, _ = started(path, BERT, "^text/(?!token_embedding)")
    np.testing.assert_array_equal(found["text/positions"], theirs["text/positions"][:6])


# ------------------------------------------------------------------------------------------------ refusals

MISTAKES = {
    "another width": (
        {"image__width": 64},
        "",
        "image.width=32 where the recipe has 64; set config.method.image.width=",
    ),
    "two differences": (
        {"text__layers": 3, "text__heads": 2},
        "",
        "has text.layers=2 where the recipe has 3, text.heads=1 where the recipe has 2; set",
    ),
    "another embedding": (
        {"embed_dim": 8},
        "",
        "image_projection/kernel is (32, 16), not (32, 8); text_projection/kernel is (64,",
    ),
    "another vocabulary's size": ({"text__vocab_size": 600}, "", "text/token_embedding is (514, 64), not (600, 64)"),
    "a bias that is not there": ({"name": "siglip"}, "", "logit_bias is not there"),
    "another activation": ({"text__activation": "gelu"}, "", "set config.method.text.activation='quick_gelu'"),
    "another eps": ({"image__eps": 1e-6}, "^image/", "set config.method.image.eps=1e-05"),
    "another mask": ({"text__causal": False}, "^text/", "set config.method.text.causal=True"),
    "another preprocessing": ({"pixels__resize": "squash"}, "", "set config.method.pixels.resize='crop'"),
    "another tower": ({"image": RESNET["image"]}, "^image/", "has image.name='vit' where the recipe has 'resnet'"),
    "nothing of the name": ({}, "^vision/", "config.init_only='^vision/' is found in no parameter's path"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_the_source_does_not_have_or_means_otherwise_is_named_in_one_line(case, tmp_path):
    keys, init_only, says = MISTAKES[case]
    path, _ = source(tmp_path, "openclip")
    with pytest.raises(UserError, match=re.escape(says)) as error:
        started(path, changed(**keys), init_only)
    assert "\n" not in str(error.value) and "config.init_" in str(error.value)


def test_towers_that_are_not_copied_may_differ(tmp_path):
    path, theirs = source(tmp_path, "openclip")
    keys = changed(text=BERT_TEXT | {"context_length": 5}, image__image_size=32)
    found, fresh, _ = started(path, keys, "^image/")
    assert_equal(found, fresh | {name: values for name, values in theirs.items() if name.startswith("image/")})
    found, fresh, _ = started(path, changed(pixels__resize="squash", image__eps=1e-6), "^text/")
    assert_equal(found, fresh | {name: values for name, values in theirs.items() if name.startswith("text/")})


def test_many_arrays_that_are_not_there_are_counted(tmp_path):
    path, _ = resnet_file(tmp_path)
    with pytest.raises(
        UserError, match=r"image_projection/kernel is not there; .* and \d+ more\. .*config.init_only"
    ) as error:
        started(path, RESNET)
    assert "\n" not in str(error.value)


def test_another_vocabulary_is_refused_where_its_embedding_is_taken(tmp_path):
    path, _ = source(tmp_path, "jaxclip")
    swapped = [*SYMBOLS[:64], *SYMBOLS[65:], SYMBOLS[64], START, END]
    other = ClipTokenizer({token: i for i, token in enumerate(swapped)}, [])
    with pytest.raises(UserError, match="another vocabulary than the run; set config.data.vocabulary"):
        started(path, tokenizer=other)
    started(path, init_only="^image/", tokenizer=other)


def test_padding_that_the_run_does_not_have_is_refused_where_the_text_tower_is_taken(tmp_path):
    keys = changed(text__causal=False)
    path, theirs = source(tmp_path, "openclip", keys)
    settings = pathlib.Path(path) / "tokenizer_config.json"
    settings.write_text(json.dumps({"pad_token": END}))
    (settings.parent / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match="padded with id 513, which its text tower sees, and the run pads with 0;"):
        started(path, keys)
    found, fresh, _ = started(path, keys, "^image")
    assert_equal(found, fresh | {name: values for name, values in theirs.items() if name.startswith("image")})


def test_bert_has_no_positions_for_a_longer_context(tmp_path):
    path, _ = bert_folder(tmp_path)
    longer = changed(text=BERT_TEXT | {"context_length": 20})
    with pytest.raises(UserError, match=re.escape("text/positions is (12, 16), not (20, 16)")):
        started(path, longer, TAKEN, tokenizers.load(tmp_path))


def test_another_bert_is_refused(tmp_path):
    path, _ = bert_folder(tmp_path, hidden_act="gelu_new")
    with pytest.raises(UserError, match="has text.activation='gelu_tanh' where the recipe has 'gelu'"):
        started(path, BERT, TAKEN, tokenizers.load(tmp_path))


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/none does not exist; accepted are")):
        started(f"{tmp_path}/none")


def test_an_invalid_expression_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.init_only='\^image\(' is not a regular expression"):
        started(str(tmp_path), init_only="^image(")


# ---------------------------------------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_a_run_starts_from_another_runs_workdir(tmp_path):
    """At a learning rate of zero, so that what it saves after a step is what it started with."""
    config = f"--config={recipe(tmp_path)}"
    start = [f"--config.init_from={tmp_path}/first", "--config.init_only=^image"]
    runs = {
        "first": [config, "--config.seed=1"],
        "second": [config, "--config.optimizer.learning_rate=0.0", "--config.steps=1", *start],
    }
    found = {}
    for name, arguments in runs.items():
        result = run([*arguments, f"--workdir={tmp_path}/{name}"], environment())
        assert result.status == 0, result.stderr
        folder = checkpoint.find(tmp_path / name)
        method = methods.from_config(checkpoint.load_model(folder)["config"]["method"])
        abstract = sharding.placed(mesh(), *methods.abstract_variables(method))
        found[name] = arrays(checkpoint.load_variables(folder, *abstract)[0])
    assert re.search(rf"[\d,]+ of them from {re.escape(str(tmp_path / 'first'))}", result.stderr)
    adamw = optimizer.create(OptimizerConfig(learning_rate=0.0), 1)
    fresh = arrays(Step(method, adamw, sharding.create(MeshConfig(), jax.devices()[:1])).init(0).params)
    expected = {path: (found["first"] if path.startswith("image") else fresh)[path] for path in fresh}
    assert_equal(found["second"], expected)
    assert not np.array_equal(found["first"]["image_projection/kernel"], fresh["image_projection/kernel"])
