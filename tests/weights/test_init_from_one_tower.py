"""config.init_from with weights of single towers: torchvision's ResNets, timm's DeiT, BERTs, and two of them."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from starting import IMAGE, assert_equal, changed, source, started

from jaxclip.data import tokenizers
from jaxclip.errors import UserError
from jaxclip.weights.positions import resized


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


def deit_file(
    folder: pathlib.Path, without: tuple[str, ...] = (), more: Mapping[str, tuple[int, ...]] = {}
) -> tuple[str, dict[str, np.ndarray]]:
    """timm's names and layouts, of a tiny DeiT of 16 patches with its classifier; and what it is here.

    Args:
      folder: where it is written.
      without: names of tensors to leave out.
      more: shapes of further tensors, or of these.
    """
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 32), "pos_embed": (1, 17, 32)}
    shapes |= {"patch_embed.proj.weight": (32, 3, 8, 8), "patch_embed.proj.bias": (32,), "head.weight": (10, 32)}
    vectors = {"norm": 32, "blocks.0.norm1": 32, "blocks.0.norm2": 32}
    shapes |= {f"{name}.{kind}": (size,) for name, size in vectors.items() for kind in ("weight", "bias")}
    layers = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}
    for name, shape in layers.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (shapes | dict(more)).items()}
    path = folder / "deit.safetensors"
    save_file({name: values for name, values in drawn.items() if name not in without}, path)
    ours = {
        "patch_kernel": drawn["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(192, 32),
        "patch_bias": drawn["patch_embed.proj.bias"],
        "class_embedding": drawn["cls_token"][0, 0],
        "positions": drawn["pos_embed"][0],
        "ln_post/scale": drawn["norm.weight"],
        "ln_post/bias": drawn["norm.bias"],
    }
    places = {"norm1": "ln_1", "attn.qkv": "qkv", "attn.proj": "attention_out", "norm2": "ln_2"}
    for theirs, name in (places | {"mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out"}).items():
        kinds = ("/scale", "/bias") if name.startswith("ln") else ("_kernel", "_bias")
        ours[f"transformer/blocks/{name}{kinds[0]}"] = drawn[f"blocks.0.{theirs}.weight"].T[None]
        ours[f"transformer/blocks/{name}{kinds[1]}"] = drawn[f"blocks.0.{theirs}.bias"][None]
    return str(path), {f"image/{name}": values for name, values in ours.items()}


DEIT_IMAGE = IMAGE | {"ln_pre": False, "patch_bias": True, "activation": "gelu", "eps": 1e-6}
DEIT = changed(image=DEIT_IMAGE)


def test_an_image_tower_starts_from_deit(tmp_path):
    path, ours = deit_file(tmp_path)
    found, fresh, taken = started(path, DEIT, init_only="^image/")
    assert_equal(found, fresh | ours)
    assert taken == sum(values.size for values in ours.values()) > 0


def test_an_image_tower_starts_from_a_deit_for_smaller_images_than_its_own(tmp_path):
    path, ours = deit_file(tmp_path)
    found, fresh, _ = started(path, changed(image=DEIT_IMAGE | {"image_size": 48}), init_only="^image/")
    assert_equal(found, fresh | ours, "image/positions")
    positions = found["image/positions"]
    assert positions.shape == (1 + 36, 32)
    np.testing.assert_array_equal(positions[0], ours["image/positions"][0])  # of the class token
    np.testing.assert_array_equal(positions, resized(ours, {"image/positions": (37, 32)})["image/positions"])


PATCHES_ALONE = "is not read at a class token; take one such as DeiT's"
OTHERS: dict[str, tuple[tuple[str, ...], dict[str, tuple[int, ...]], str]] = {
    "distilled": ((), {"pos_embed": (1, 18, 32), "dist_token": (1, 1, 32)}, "take a model that is not distilled"),
    "SigLIP's": (("cls_token",), {"pos_embed": (1, 16, 32), "attn_pool.latent": (1, 1, 32)}, PATCHES_ALONE),
    "with pooled patches": (("norm.weight", "norm.bias"), {"fc_norm.weight": (32,)}, PATCHES_ALONE),
    "BEiT's": (("pos_embed",), {"rel_pos_bias.table": (9, 2)}, "pos_embed is missing"),
    "with scaled layers": ((), {"blocks.0.ls1.gamma": (32,)}, "1 too many (blocks.0.ls1.gamma)"),
    "damaged": ((), {"blocks.0.mlp.fc1.bias": ()}, "blocks.0.mlp.fc1.bias scalar instead of 128"),
    "CLIP's": (
        ("patch_embed.proj.bias",),
        {"norm_pre.weight": (32,), "norm_pre.bias": (32,)},
        "has image.ln_pre=True where the recipe has False",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_vision_transformer_is_refused(tmp_path, kind):
    without, more, said = OTHERS[kind]
    path, _ = deit_file(tmp_path, without, more)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        started(path, DEIT, "^image/")
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize("lower", [0, 1])
def test_the_recipe_says_how_the_blocks_of_a_bert_are_divided(tmp_path, lower):
    path, ours = bert_folder(tmp_path)
    ours["text/positions"] = ours["text/positions"][:6]
    if not lower:
        for name in [name for name in ours if name.startswith("text/lower/")]:
            upper = name.replace("/lower/", "/upper/")
            ours[upper] = np.concatenate([ours.pop(name), ours[upper]])
    found, fresh, _ = started(path, changed(text=BERT_TEXT | {"lower": lower}), TAKEN, tokenizers.load(tmp_path))
    assert_equal(found, fresh | ours)


def test_two_towers_start_from_a_source_each(tmp_path):
    text, text_arrays = bert_folder(tmp_path / "bert")
    text_arrays["text/positions"] = text_arrays["text/positions"][:6]
    image, image_arrays = resnet_file(tmp_path)
    keys = RESNET | {"text": BERT_TEXT | {"pool": "max"}}
    found, fresh, taken = started(f"{image} + {text}", keys, tokenizer=tokenizers.load(tmp_path / "bert"))
    assert_equal(found, fresh | image_arrays | text_arrays)
    assert taken == sum(values.size for values in (image_arrays | text_arrays).values())


ALBEF = {"name": "albef", "image": DEIT_IMAGE, "text": BERT_TEXT, "embed_dim": 16, "mask_id": 4, "queue": 16}


def add_word_head(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Adds the rest of the head of masked words to a BERT's folder; what the head is here."""
    rng = np.random.default_rng(6)
    theirs = load_file(folder / "model.safetensors")
    matrix, *vectors = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((16, 16), 16, 16, 16, len(BERT_WORDS))
    )
    names = ("transform.dense.bias", "transform.LayerNorm.gamma", "transform.LayerNorm.beta", "bias")
    head = {"transform.dense.weight": matrix, **dict(zip(names, vectors, strict=True))}
    # Another one, which is not taken.
    head = {f"cls.predictions.{name}": values for name, values in head.items()}
    save_file(theirs | head | {"cls.seq_relationship.bias": np.zeros(2, np.float32)}, folder / "model.safetensors")
    paths = ("words/transform/bias", "words/ln/scale", "words/ln/bias", "words/bias")
    return {"words/transform/kernel": matrix.T, **dict(zip(paths, vectors, strict=True))}


def test_a_bert_starts_both_halves_and_the_word_head_and_no_cross_attention(tmp_path):
    path, ours = bert_folder(tmp_path)
    ours["text/positions"] = ours["text/positions"][:6]
    words = add_word_head(tmp_path)
    found, fresh, taken = started(path, ALBEF, "^(text|words)/", tokenizers.load(tmp_path))
    assert_equal(found, fresh | ours | words)
    assert taken == sum(values.size for values in (ours | words).values())
    new = [name for name in fresh if name.startswith("text/") and name not in ours]
    assert len(new) == 8 and all(
        name.startswith(("text/upper/blocks/cross_", "text/upper/blocks/ln_cr")) for name in new
    )
    # The same path of parameters without the head leaves the head as it was.
    found, fresh, _ = started(path, ALBEF, "^text/", tokenizers.load(tmp_path))
    assert_equal(found, fresh | ours)


def test_the_word_head_stays_as_it_was_if_the_file_has_no_complete_one(tmp_path):
    path, ours = bert_folder(tmp_path)
    ours["text/positions"] = ours["text/positions"][:6]
    found, fresh, _ = started(path, ALBEF, "^(text|words)/", tokenizers.load(tmp_path))
    assert_equal(found, fresh | ours)


def test_an_albef_starts_from_deit_and_bert(tmp_path):
    text, text_arrays = bert_folder(tmp_path / "bert")
    text_arrays["text/positions"] = text_arrays["text/positions"][:6]
    arrays = text_arrays | add_word_head(tmp_path / "bert")
    image, image_arrays = deit_file(tmp_path)
    # Texts that the run cleans in another way than the files have the same vocabulary.
    for clean in ("", "albef"):
        tokenizer = tokenizers.load(tmp_path / "bert", clean=clean or None)
        found, fresh, taken = started(f"{image} + {text}", ALBEF, tokenizer=tokenizer, clean=clean)
        assert_equal(found, fresh | image_arrays | arrays)
        assert taken == sum(values.size for values in (image_arrays | arrays).values())


def test_a_tower_of_another_kind_than_the_methods_is_refused(tmp_path):
    resnet, _ = resnet_file(tmp_path)
    deit, _ = deit_file(tmp_path)
    text, _ = bert_folder(tmp_path / "bert")
    virtex = {"name": "virtex", "image": RESNET["image"]}
    for path, keys, said in (
        (resnet, ALBEF, "has image.name='resnet' where the recipe has 'vit'; take weights of the recipe's kind"),
        (deit, RESNET, "has image.name='vit' where the recipe has 'resnet'; take weights of the recipe's kind"),
        (text, virtex, "has text.name='bert' where the recipe has None; take weights of the recipe's kind"),
    ):
        with pytest.raises(UserError, match=said) as error:
            started(path, keys, tokenizer=None)
        assert "\n" not in str(error.value)


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


def test_bert_has_no_positions_for_a_longer_context(tmp_path):
    path, _ = bert_folder(tmp_path)
    longer = changed(text=BERT_TEXT | {"context_length": 20})
    with pytest.raises(UserError, match=re.escape("text/positions is (12, 16), not (20, 16)")):
        started(path, longer, TAKEN, tokenizers.load(tmp_path))


def test_another_bert_is_refused(tmp_path):
    path, _ = bert_folder(tmp_path, hidden_act="gelu_new")
    with pytest.raises(UserError, match="has text.activation='gelu_tanh' where the recipe has 'gelu'"):
        started(path, BERT, TAKEN, tokenizers.load(tmp_path))


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
