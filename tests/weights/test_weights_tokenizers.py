"""Vocabularies in weight folders: settings from neighboring files, and exact round trips.

models/siglip_form.model has the special ids of c4_en: <pad> 0, </s> 1, <unk> 2.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from paths import MODELS
from test_tokenizer_normalizing import CAPTIONS, EXPECTED, letters
from test_weights_hugging_face_files import siglip_method

from jaxclip import methods
from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import virtex, wordpiece
from jaxclip.data.tokenizers.clip import END
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxclip.errors import UserError
from jaxclip.methods import clip
from jaxclip.towers import TextConfig, ViTConfig
from jaxclip.weights.export import save
from jaxclip.weights.families.hugging_face.files import write_tokenizer
from jaxclip.weights.load import open_weights
from jaxclip.weights.overrides import Answers

MODEL = (MODELS / "siglip_form.model").read_bytes()
TEXTS = [*CAPTIONS, "A photo of a RED_cat", "</s> and <pad>", "in front of a pink house at night " * 3]


def ids(tokenizer: tokenizers.Tokenizer, texts=TEXTS) -> list[list[int]]:
    return tokenizer(texts, 24)[0].tolist()


def saved(folder: pathlib.Path, form: str, tokenizer: tokenizers.Tokenizer, **text_keys) -> pathlib.Path:
    """A small model with that vocabulary, written in one of the forms."""
    image = ViTConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, activation="gelu")
    text = TextConfig(
        tokenizer.vocab_size, context_length=24, width=8, layers=1, heads=2, activation="gelu", **text_keys
    )
    method = clip.Method(image, text, 4)
    save(folder, form, method, tokenizer, *methods.init_variables(method, jax.random.key(0)))
    return folder


def folder_of(path: pathlib.Path, *, model: str | None = None, fast: bool = False, **settings) -> pathlib.Path:
    """A folder with a model of that name, a tokenizer.json, and a tokenizer_config.json."""
    path.mkdir(exist_ok=True)
    if model:
        (path / model).write_bytes(MODEL)
    if fast:
        (path / "tokenizer.json").write_text(letters().to_str())
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory) -> pathlib.Path:
    """An open_clip model with a vocabulary without any cleaning."""
    folder = tmp_path_factory.mktemp("models") / "open_clip"
    return saved(folder, "openclip", HuggingFaceTokenizer(letters().to_str()))


def changed(folder: pathlib.Path, to: pathlib.Path, **text) -> pathlib.Path:
    """A copy of an open_clip folder with other keys in its text_cfg."""
    shutil.copytree(folder, to)
    config = json.loads((to / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    (to / "open_clip_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("clean", [None, "whitespace", "lower", "canonicalize"])
def test_texts_are_cleaned_as_configured_in_an_open_clip_folder(tmp_path, open_clip_folder, clean):
    folder = changed(open_clip_folder, tmp_path / "folder", tokenizer_kwargs={"clean": clean} if clean else {})
    tokenizer = open_weights(folder).tokenizer
    cleaned = [EXPECTED[clean or "whitespace"](text) for text in TEXTS]
    assert ids(tokenizer) == ids(HuggingFaceTokenizer(letters().to_str()), cleaned)


def test_a_given_vocabulary_is_used_with_the_settings_of_the_open_clip_folder(tmp_path, open_clip_folder):
    folder = changed(open_clip_folder, tmp_path / "folder", tokenizer_kwargs={"clean": "canonicalize"})
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    tokenizer = open_weights(folder, Answers(tokenizer=tmp_path / "elsewhere.json")).tokenizer
    assert tokenizer.clean == "canonicalize"


@pytest.mark.parametrize(
    "text",
    [
        {"tokenizer_kwargs": {"clean": "upper"}},
        {"tokenizer_kwargs": {"clean": ["lower"]}},
        {"tokenizer_kwargs": {"strip_sep_token": True}},
        {"tokenizer_kwargs": "lower"},
        {"tokenizer_mode": "clips"},
        {"hf_tokenizer_name": None, "tokenizer_kwargs": {"clean": "canonicalize"}},
    ],
    ids=str,
)
def test_unsupported_text_cleaning_is_refused_in_one_line(tmp_path, open_clip_folder, text):
    folder = changed(open_clip_folder, tmp_path / "folder", **text)
    with pytest.raises(UserError, match="text_cfg .*nothing but clean=") as caught:
        open_weights(folder)
    assert "open_clip_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_clips_vocabulary_is_not_used_without_punctuation(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizers.train(["a"], 514).to_json())
    assert tokenizers.load(tmp_path, clean="lower").to_json() == tokenizers.load(tmp_path).to_json()
    with pytest.raises(UserError, match="only for texts with punctuation"):
        tokenizers.load(tmp_path, clean="canonicalize")


@pytest.mark.parametrize("form", ["jaxclip", "openclip"])
@pytest.mark.parametrize("clean", [None, "lower", "canonicalize"])
def test_a_saved_models_vocabulary_is_restored(tmp_path, form, clean):
    tokenizer = HuggingFaceTokenizer(letters().to_str(), clean=clean)
    folder = saved(tmp_path / "saved", form, tokenizer)
    # open_clip repairs all texts at least.
    texts = [text for text in TEXTS if clean or EXPECTED["whitespace"](text) == text]
    assert ids(open_weights(folder).tokenizer, texts) == ids(tokenizer, texts)


def test_a_vocabulary_of_virtexs_form_is_kept_in_jaxclips_own_form_alone(tmp_path):
    tokenizer = virtex.train(CAPTIONS, 200)
    assert ids(open_weights(saved(tmp_path / "saved", "jaxclip", tokenizer)).tokenizer) == ids(tokenizer)
    for form in ("openclip", "huggingface"):
        with pytest.raises(UserError, match=f"^{form} has no vocabularies of VirTex's form"):
            saved(tmp_path / form, form, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_virtexs_texts_are_not_cleaned_as_open_clip_configures(tmp_path, open_clip_folder):
    folder = changed(open_clip_folder, tmp_path / "folder", tokenizer_kwargs={"clean": "lower"})
    (tmp_path / "coco.model").write_bytes(virtex.train(CAPTIONS, 200).model)
    with pytest.raises(UserError, match=r"coco\.model .*VirTex's texts are not cleaned by clean='lower'"):
        open_weights(folder, Answers(tokenizer=tmp_path / "coco.model"))


# Files of a folder with a vocabulary of CLIP's form, and transformers' padding token.
PADDED = [
    ({"tokenizer_config.json": {"pad_token": END}}, END),
    ({"tokenizer_config.json": {"pad_token": {"content": "b</w>"}}}, "b</w>"),
    ({"tokenizer_config.json": {"tokenizer_class": "CLIPTokenizerFast"}}, END),
    ({"tokenizer_config.json": {"pad_token": "!"}, "special_tokens_map.json": {"pad_token": END}}, END),
    ({"special_tokens_map.json": {"pad_token": END}}, END),
    ({}, "!"),  # that of tokenizer.json
]
SEEN = [{"causal": False}, {"pool": "last"}, {"causal": False, "pool": "last"}]


def padded_folder(folder: pathlib.Path, files: dict, named: bool = True, **text_keys) -> pathlib.Path:
    """An open_clip folder of a model with CLIP's form of vocabulary and these tokenizer files beside tokenizer.json."""
    plain = saved(folder / "plain", "openclip", tokenizers.train(["a"], 514), **text_keys)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"):
        (plain / name).unlink()
    for name, content in files.items():
        (plain / name).write_text(json.dumps(content))
    return plain if named else changed(plain, folder / "unnamed", hf_tokenizer_name=None, tokenizer_kwargs={})


@pytest.mark.parametrize(("files", "pad"), PADDED)
@pytest.mark.parametrize("text_keys", SEEN)
def test_a_text_tower_that_sees_the_padding_has_that_of_transformers(tmp_path, files, pad, text_keys):
    tokenizer = open_weights(padded_folder(tmp_path, files, **text_keys)).tokenizer
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    tokens, ends = tokenizer(["a", "a" * 9], 6)
    a, last = vocabulary["a"], vocabulary["a</w>"]
    assert tokens.tolist() == [[512, last, 513, *[vocabulary[pad]] * 3], [512, a, a, a, a, 513]]
    assert ends.tolist() == [2, 5]


@pytest.mark.parametrize(("text_keys", "named"), [({}, True), ({"causal": False}, False)])
def test_open_clips_own_padding_and_one_that_is_not_seen_are_id_0(tmp_path, text_keys, named):
    files = {"tokenizer_config.json": {"pad_token": END}}
    tokenizer = open_weights(padded_folder(tmp_path, files, named=named, **text_keys)).tokenizer
    assert tokenizer(["a"], 5)[0][0, 2:].tolist() == [513, 0, 0]


def test_padding_that_is_seen_and_not_known_is_asked_for(tmp_path):
    folder = padded_folder(tmp_path, {}, causal=False)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"padding": None}))
    with pytest.raises(UserError, match="its padding token is unknown; put a tokenizer_config.json such as"):
        open_weights(folder)


@pytest.mark.parametrize("form", ["jaxclip", "openclip"])
def test_a_models_padding_goes_along_with_it(tmp_path, form):
    tokenizer = open_weights(padded_folder(tmp_path, PADDED[0][0], causal=False)).tokenizer
    again = open_weights(saved(tmp_path / "again", form, tokenizer, causal=False)).tokenizer
    assert again.pad_id == again.end_id == 513 and again.to_json() == tokenizer.to_json()


WRITTEN = {
    "letters": lambda: HuggingFaceTokenizer(letters().to_str()),
    "whitespace": lambda: HuggingFaceTokenizer(letters().to_str(), clean="whitespace"),
    "lower": lambda: HuggingFaceTokenizer(letters().to_str(), clean="lower"),
    "canonicalize": lambda: HuggingFaceTokenizer(letters().to_str(), clean="canonicalize"),
    "siglip": lambda: HuggingFaceTokenizer(letters().to_str(), clean="siglip"),
    "padded with the end": lambda: HuggingFaceTokenizer(letters().to_str(), pad_token="</s>"),
    "wordpiece": lambda: wordpiece.train(CAPTIONS, 200),
    "sentencepiece": lambda: SentencePieceTokenizer(MODEL),
    "sentencepiece, padded with 0": lambda: SentencePieceTokenizer(MODEL, pad_id=0),
    "sentencepiece, padded with 0, lower": lambda: SentencePieceTokenizer(MODEL, pad_id=0, clean="lower"),
    "sentencepiece as it is": lambda: SentencePieceTokenizer(MODEL, clean="none"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_vocabulary_written_for_hugging_face_is_read_back_unchanged(tmp_path, name):
    tokenizer = WRITTEN[name]()
    write_tokenizer(tmp_path, siglip_method(tokenizer), tokenizer)
    again = tokenizers.load(tmp_path)
    assert ids(again) == ids(tokenizer)
    assert again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("clean", ["canonicalize", "siglip"])
def test_texts_that_lose_their_punctuation_are_written_to_spell_no_special_token(tmp_path, clean):
    tokenizer = HuggingFaceTokenizer(letters().to_str(), clean=clean)
    write_tokenizer(tmp_path, siglip_method(tokenizer), tokenizer)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["split_special_tokens"] is True


@pytest.mark.parametrize("fast", [True, False])
def test_siglips_tokenizer_is_its_sentencepiece_model(tmp_path, fast):
    folder = folder_of(tmp_path, model="spiece.model", fast=fast, tokenizer_class="SiglipTokenizer")
    assert ids(tokenizers.load(folder)) == ids(SentencePieceTokenizer(MODEL))


def test_siglips_tokenizer_without_its_model_is_the_file_on_canonical_texts(tmp_path):
    folder = folder_of(tmp_path, fast=True, tokenizer_class="SiglipTokenizer")
    cleaned = [EXPECTED["siglip"](text) for text in TEXTS]
    assert ids(tokenizers.load(folder)) == ids(HuggingFaceTokenizer(letters().to_str()), cleaned)


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "Siglip2TokenizerFast"])
def test_siglip_2s_texts_are_in_lower_case_and_otherwise_as_they_are(tmp_path, kind):
    folder = folder_of(tmp_path / "fast", fast=True, tokenizer_class=kind)
    plain = HuggingFaceTokenizer(letters().to_str())
    texts = ["Two  RED_Circles, left of 3!", "</s> A"]  # a special token in a text stays one
    assert ids(tokenizers.load(folder), texts) == ids(plain, [text.lower() for text in texts])
    (folder / "tokenizer.json").write_text(tokenizers.load(folder).to_json())
    assert tokenizers.load(folder).to_json() == (folder / "tokenizer.json").read_text()

    folder = folder_of(tmp_path / "model", model="tokenizer.model", tokenizer_class=kind)
    tokenizer = tokenizers.load(folder)
    assert tokenizer.pad_id == 0
    expected = SentencePieceTokenizer(MODEL, pad_id=0, clean="none")
    assert ids(tokenizer) == ids(expected, [text.lower() for text in TEXTS])


def test_gemmas_tokenizer_is_used_with_its_files_settings(tmp_path):
    folder = folder_of(tmp_path / "fast", fast=True, tokenizer_class="GemmaTokenizerFast")
    assert ids(tokenizers.load(folder)) == ids(HuggingFaceTokenizer(letters().to_str()))
    folder = folder_of(tmp_path / "model", model="tokenizer.model", tokenizer_class="GemmaTokenizer")
    tokenizer = tokenizers.load(folder)
    assert tokenizer.pad_id == 0
    capital, small = tokenizer(["A cat", "a cat"], 12)[0]
    assert not np.array_equal(capital, small)


@pytest.mark.parametrize("pad", ["<pad>", {"content": "<pad>", "lstrip": False}])
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_a_models_padding_is_named_beside_it(tmp_path, name, pad):
    folder = folder_of(tmp_path, model=name, pad_token=pad)
    for path in (folder, folder / name):
        assert ids(tokenizers.load(path)) == ids(SentencePieceTokenizer(MODEL, pad_id=0))
    folder_of(tmp_path)
    assert ids(tokenizers.load(folder)) == ids(SentencePieceTokenizer(MODEL, pad_id=1))


def test_the_settings_padding_goes_before_that_of_the_file(tmp_path):
    backend = letters()
    backend.enable_padding(pad_id=0, pad_token="<pad>")
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "</s>"}')
    assert tokenizers.load(tmp_path).pad_id == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('{"pad_token": "[PAD]"}', r"the pad token '\[PAD\]' is not in its vocabulary"),
        ('{"pad_token": 3}', "its tokenizer_class or its pad_token is not a string"),
        ('{"pad_token": {}}', "invalid structure"),
        ("[]", "invalid structure"),
        ("{", "tokenizer_config.json cannot be used"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(tmp_path, settings, reason):
    folder_of(tmp_path, model="spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(UserError, match=reason) as caught:
        tokenizers.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
