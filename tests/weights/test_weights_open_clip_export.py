"""Export for open_clip: a config of the same model, or an error with the reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from open_clip_published import PUBLISHED, method_of, published

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.clip import END, START, SYMBOLS, ClipTokenizer
from jaxclip.data.tokenizers.wordpiece import from_vocabulary
from jaxclip.errors import UserError
from jaxclip.towers.bert import BertConfig
from jaxclip.towers.resnet import ResNetConfig
from jaxclip.weights.families import open_clip

# Its end token is the largest id, as in all of CLIP's vocabularies.
SMALL = ClipTokenizer({token: i for i, token in enumerate([*SYMBOLS, START, END])}, [])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_comes_back_from_the_config_written_for_it(name):
    method = method_of(PUBLISHED[name][0], {"mean": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"})
    written = json.loads(json.dumps(open_clip.config_of(method, SMALL)))
    assert method_of(written["model_cfg"], written["preprocess_cfg"]) == method
    # And the hidden layers are as wide when open_clip cuts width * mlp_ratio down.
    for tower, part in ((method.image, "vision_cfg"), (method.text, "text_cfg")):
        config = written["model_cfg"][part]
        if "mlp_ratio" in config:
            assert int(config["width"] * config["mlp_ratio"]) == tower.block.hidden
    assert written["model_cfg"].get("init_logit_bias") == PUBLISHED[name][0].get("init_logit_bias")


@pytest.mark.parametrize("hidden", [1, 29, 100, 767, 769, 3071, 3073, 20_000])
def test_every_width_of_a_hidden_layer_can_be_written(hidden):
    method = method_of(published("ViT-B-32"))
    method = dataclasses.replace(method, image=dataclasses.replace(method.image, mlp_width=hidden))
    assert method_of(open_clip.config_of(method, SMALL)["model_cfg"]) == method


def test_what_open_clip_cannot_build_is_not_written():
    plain, sig = method_of(published("ViT-B-32")), method_of(published("ViT-B-16-SigLIP"))

    def refused(method: Any, reason: str, **image: Any) -> None:
        changed = dataclasses.replace(method, image=dataclasses.replace(method.image, **image))
        with pytest.raises(UserError, match=reason):
            open_clip.config_of(changed, SMALL)

    refused(plain, "gelu and quick_gelu", activation="quick_gelu")
    refused(plain, "patch_bias", patch_bias=True)
    refused(dataclasses.replace(plain, embed_dim=768, image_projection=False), "no image_projection")
    refused(dataclasses.replace(plain, image_projection_bias=True), "image_projection_bias=True and a vit")
    resnet = method_of(published("RN50"))
    refused(dataclasses.replace(resnet, image_projection_bias=False), "image_projection_bias=False")
    projected = dataclasses.replace(sig, image_projection=True)
    refused(projected, "width=64.*none of timm's SigLIP", width=64, heads=1)
    refused(sig, "activation=gelu_tanh.*otherwise is timm's vit_base_patch16_siglip_224", activation="gelu_tanh")
    refused(sig, "image_size=240.*none of timm's SigLIP", image_size=240)
    for towers, reason in [({"text": BertConfig()}, "bert"), ({"image": ResNetConfig(224)}, "resnet")]:
        method = dataclasses.replace(plain, **towers)
        with pytest.raises(UserError, match=reason):
            open_clip.config_of(method, SMALL)
        with pytest.raises(UserError, match=reason):
            open_clip.pieces(method)


def test_texts_are_read_at_their_end_whatever_the_vocabulary(shared_data):
    method = method_of(published("ViT-B-32"))
    openai = tokenizers.load(shared_data / "bpe_simple_vocab_16e6.txt.gz")
    text = open_clip.config_of(method, openai)["model_cfg"]["text_cfg"]
    assert not {"hf_tokenizer_name", "tokenizer_kwargs", "pool_type", "eos_id"} & set(text)
    text = open_clip.config_of(method, SMALL)["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] and text["tokenizer_kwargs"] == {"clean": "lower"} and "pool_type" not in text
    # [SEP] ends a text there, and is not the largest id.
    words = from_vocabulary("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    text = open_clip.config_of(method, words)["model_cfg"]["text_cfg"]
    assert (text["pool_type"], text["eos_id"]) == ("eos", 3)
    with pytest.raises(UserError, match="end token"):
        open_clip.config_of(method, _Endless())


@dataclasses.dataclass(frozen=True)
class _Endless:
    """A vocabulary that puts nothing after a text."""

    vocab_size: int = 1000
    start_id: int | None = None
    end_id: int | None = None
