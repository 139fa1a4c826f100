"""Tokenizers from tokenizer.json and vocab.txt, compared with the library's own padding and truncation."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from tokenizer_reference import STRINGS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxclip.data import tokenizers
from jaxclip.errors import UserError

TEXTS = [f"a {size} {color} {shape}, {i} of them" for i in range(3) for size in ("big", "small")
         for color in ("red", "blue") for shape in ("circle", "square")]  # fmt: skip
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s", "c", "##a", "##t", ",", "caf", "##e"]


def trained(model, trainer, pre_tokenizer, decoder, template=None, specials=()) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    backend.train_from_iterator(TEXTS, trainer)
    if template:
        ids = [(token, backend.token_to_id(token)) for token in specials if token in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return backend


def gpt2() -> Tokenizer:
    """Byte-level, no specials around a text; <|endoftext|> is the only special token there is."""
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def roberta() -> Tokenizer:
    backend = gpt2()
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    ends = [(token, backend.token_to_id(token)) for token in ("</s>", "<s>")]
    backend.post_processor = processors.RobertaProcessing(*ends)
    return backend


def unigram() -> Tokenizer:
    """As T5's and XLM-R's: <unk>, </s> after every text."""
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=specials, unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace(), "$A </s>", specials)


def words() -> Tokenizer:
    specials = ["[UNK]", "[PAD]", "[BOS]"]
    trainer = trainers.WordLevelTrainer(special_tokens=specials, show_progress=False)
    return trained(
        models.WordLevel(unk_token="[UNK]"), trainer, pre_tokenizers.Whitespace(), decoders.Fuse(), "[BOS] $A", specials
    )


def bert() -> Tokenizer:
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(BERT)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(BERT[:5])
    return backend


KINDS = {"gpt2": gpt2, "roberta": roberta, "unigram": unigram, "words": words, "bert": bert}
# The special tokens of each: start, end, padding and mask.
SPECIAL = {
    "gpt2": (None, None, "<|endoftext|>", None),
    "roberta": ("<s>", "</s>", "<pad>", "<mask>"),
    "unigram": (None, "</s>", "<pad>", None),
    "words": ("[BOS]", None, "[PAD]", None),
    "bert": ("[CLS]", "[SEP]", "[PAD]", "[MASK]"),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def written(folder: pathlib.Path, backend: Tokenizer) -> pathlib.Path:
    (folder / "tokenizer.json").write_text(backend.to_str())
    return folder


def test_special_ids_are_those_of_the_file(kind, tmp_path):
    backend = KINDS[kind]()
    tokenizer = tokenizers.load(written(tmp_path, backend))
    found = (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.mask_id)
    assert found == tuple(None if token is None else backend.token_to_id(token) for token in SPECIAL[kind])
    assert tokenizer.vocab_size == backend.get_vocab_size()


@pytest.mark.parametrize("context", [3, 8, 90])
def test_rows_are_as_the_library_cuts_and_pads_them(kind, tmp_path, context):
    backend = KINDS[kind]()
    texts = [*TEXTS[:4], *(text for text in STRINGS if text.isprintable())]
    tokens, ends = tokenizers.load(written(tmp_path, backend))(texts, context)
    backend.enable_truncation(context)
    pad = backend.token_to_id(SPECIAL[kind][2])
    for text, row, end in zip(texts, tokens, ends, strict=True):
        ids = backend.encode(text).ids
        assert row.tolist() == ids + [pad] * (context - len(ids)), repr(text)
        assert end == max(len(ids) - 1, 0)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "unigram"])
def test_decode_leaves_out_what_is_around_a_text(tmp_path, name):
    tokenizer = tokenizers.load(written(tmp_path, KINDS[name]()))
    for text in (TEXTS[0], ""):
        assert tokenizer.decode(tokenizer([text], 60)[0][0]) == text


def test_decode_leaves_out_an_end_token_that_also_pads(tmp_path):
    backend = roberta()
    backend.enable_padding(pad_token="</s>")
    tokenizer = tokenizers.load(written(tmp_path, backend))
    assert tokenizer.pad_id == tokenizer.end_id
    for text in (TEXTS[0], ""):
        assert tokenizer.decode(tokenizer([text], 60)[0][0]) == text


def test_the_files_own_cutting_and_padding_is_not_used(kind, tmp_path):
    backend = KINDS[kind]()
    plain = tokenizers.load(written(tmp_path, backend))(TEXTS, 40)
    backend.enable_truncation(4, direction="left")
    backend.enable_padding(direction="left", length=64, pad_token=SPECIAL[kind][2])
    for ours, theirs in zip(tokenizers.load(written(tmp_path, backend))(TEXTS, 40), plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_padding_is_by_the_token_that_the_file_names(tmp_path):
    backend = roberta()
    backend.enable_padding(pad_id=0, pad_token="<mask>")  # 0 is the default if a file's writer gave only the token
    assert tokenizers.load(written(tmp_path, backend)).pad_id == backend.token_to_id("<mask>")


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "special": True}])
def test_padding_may_be_named_in_the_settings_beside_the_file(tmp_path, token):
    backend = gpt2()
    backend.add_special_tokens(["<s>"])
    written(tmp_path, backend)
    with pytest.raises(UserError, match="its padding token is unknown"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.pad_id == backend.token_to_id("<s>")
    assert tokenizers.from_json(tokenizer.to_json()).pad_id == tokenizer.pad_id


def test_older_folders_name_the_padding_in_their_special_tokens(tmp_path):
    backend = roberta()
    written(tmp_path, backend)
    settings = {"pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<mask>"}}))
    assert tokenizers.load(tmp_path).pad_id == backend.token_to_id("<mask>")
    # Newer ones have all in one file, and transformers reads only that.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": {}}))
    assert tokenizers.load(tmp_path).pad_id == backend.token_to_id("<pad>")


def test_special_tokens_that_do_not_fit_are_an_error(tmp_path):
    tokenizer = tokenizers.load(written(tmp_path, bert()))
    assert tokenizer(["cat"], 2)[0].tolist() == [[2, 3]]
    with pytest.raises(UserError, match="context_length=1 is too short for the 2 special tokens"):
        tokenizer(["cat"], 1)


def test_berts_vocabulary_alone_gives_berts_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(BERT) + "\n")
    expected = tokenizers.load(written(tmp_path / "..", bert()) / "tokenizer.json")
    tokenizer = tokenizers.load(tmp_path / "vocab.txt")
    texts = ["A  Caf\u00e9, cats", "", "zebra [MASK] cat", "\u65e5cat"]
    tokens, ends = tokenizer(texts, 8)
    assert tokens[0].tolist() == [2, 5, 13, 14, 12, 7, 8, 3] and ends.tolist() == [7, 1, 4, 3]
    assert tokens[1:].tolist() == [[2, 3, *[0] * 6], [2, 1, 4, 7, 3, *[0] * 3], [2, 1, 7, 3, *[0] * 4]]
    np.testing.assert_array_equal(tokens, expected(texts, 8)[0])
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.mask_id) == (2, 3, 0, 4)
    assert tokenizer.decode(tokens[0]) == "a cafe, cats"


def test_a_vocabulary_with_windows_line_ends_is_the_same(tmp_path):
    for name, end in (("unix.txt", "\n"), ("windows.txt", "\r\n")):
        (tmp_path / name).write_bytes(end.join(BERT).encode())
    assert tokenizers.load(tmp_path / "unix.txt").to_json() == tokenizers.load(tmp_path / "windows.txt").to_json()


def test_special_tokens_with_capitals_leave_a_vocabulary_uncased_and_are_plain_text(tmp_path):
    special = ["<S>", "<T>", "[unused1]", "[X1]", "{Y}", "(Z)", "<|V|>", "@USER", "__U__"]
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, *special, "<", "s", ">"]))
    tokenizer = tokenizers.load(tmp_path)
    opened, letter, closed = range(len(BERT) + len(special), tokenizer.vocab_size)
    tokens, _ = tokenizer(["<S> CAT", "<s>cat"], 7)
    assert tokens.tolist() == [[2, opened, letter, closed, 7, 3, 0]] * 2


@pytest.mark.parametrize("word", ["Cat", "##T", "I", "\u041a\u043e\u0442", "\u00c9"])
def test_a_plain_word_with_a_capital_makes_a_vocabulary_cased(tmp_path, word):
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "<S>", word]), encoding="utf-8")
    with pytest.raises(UserError, match=f"it is cased .it has '{word}'.; use the tokenizer.json"):
        tokenizers.load(tmp_path)


def without(part: str, value: object = None) -> str:
    return json.dumps(json.loads(bert().to_str()) | {part: value})


WRONG = {
    "a cased vocabulary": ("\n".join([*BERT, "Cat"]), "it is cased"),
    "a token twice": ("\n".join([*BERT, "cat"]), "'cat' occurs more than once"),
    "no end": ("\n".join(token for token in BERT if token != "[SEP]"), r"no \[SEP\]"),
    "no unknown token": (
        without("model", {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(BERT)}, "unk_token": "?"}),
        "no token for unknown text",
    ),
    "damaged normalization": (
        without("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "charsmap",
    ),
    "a damaged expression": (
        without("normalizer", {"type": "Replace", "pattern": {"Regex": "((("}, "content": ""}),
        "parenthesis",
    ),
    "padding outside the vocabulary": (
        without("padding", {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
                            "pad_id": 99, "pad_type_id": 0, "pad_token": "[NONE]"}),
        "pads with id 99",
    ),
    "an end outside the vocabulary": (
        without("post_processor", {"type": "BertProcessing", "sep": ["[SEP]", 99], "cls": ["[CLS]", 2]}),
        "ids that are not in its vocabulary",
    ),
    "a text twice": (
        without(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {},
            },
        ),
        "in one piece",
    ),
    "an unknown model": (without("model", {"type": "Trigram", "vocab": {}}), "Model"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_unusable_files_are_refused_in_one_line(tmp_path, name, capfd):
    content, reason = WRONG[name]
    path = tmp_path / "vocabulary"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
