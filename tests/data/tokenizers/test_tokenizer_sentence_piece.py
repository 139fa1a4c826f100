"""SentencePiece in SigLIP's form, compared with ids of the SentencePiece library.

models/siglip_form.model was trained by it (0.2.3, unigram, 100 pieces) from sentences about colored shapes, with the
special ids of c4_en: pad 0, end 1, unknown 2. models/no_end.model is the same without an end token.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import subprocess
import sys

import numpy as np
import pytest
from paths import MODELS, ROOT

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxclip.errors import UserError

DATA = MODELS
# What SentencePieceProcessor.encode gives of texts that are in SigLIP's form already.
IDS = {
    "": [],
    "a photo of a red cat": [3, 22, 59, 9, 12, 13, 11, 3, 7, 44, 36, 58],
    "caf\u00e9 \u65e5\u672c\u8a9e": [7, 26, 23, 11, 97, 7, 93, 92, 91],
    "zebra q 42": [7, 2, 5, 66, 8, 23, 7, 94, 7, 86, 85],
    "in front of a pink house at night": [17, 7, 11, 8, 74, 9, 13, 11, 3, 29, 10, 18, 63, 3, 9, 15, 28],
}


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.load(DATA / "siglip_form.model")


def test_special_ids_are_c4_ens(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id) == (100, 1, 1)
    assert tokenizer.start_id is None and tokenizer.mask_id is None


@pytest.mark.parametrize("context", [4, 12, 13, 64])
def test_rows_are_the_librarys_ids_and_end_tokens_to_the_last_place(tokenizer, context):
    tokens, ends = tokenizer(list(IDS), context)
    assert tokens.dtype == ends.dtype == np.int32 and ends.tolist() == [context - 1] * len(IDS)
    for row, ids in zip(tokens, IDS.values(), strict=True):
        assert row.tolist() == [*ids[: context - 1], *[1] * max(1, context - len(ids))]


def test_the_place_after_the_end_may_be_filled_otherwise():
    tokenizer = SentencePieceTokenizer((DATA / "siglip_form.model").read_bytes(), pad_id=0)
    tokens, ends = tokenizer(["a photo of a red cat", ""], 15)
    assert tokens.tolist() == [[*IDS["a photo of a red cat"], 1, 0, 0], [1, *[0] * 14]]
    assert ends.tolist() == [14, 14]
    again = tokenizers.from_json(tokenizer.to_json())
    assert again.pad_id == 0 and again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "A Photo of a RED cat.",
        "  a\tphoto\nof a\u3000red cat ",
        'a "photo" (of) a red cat?!',
        "a_photo_of a red cat",
        "a ph-oto of a r'ed cat",
    ],
)
def test_texts_are_in_lower_case_without_punctuation(tokenizer, text):
    np.testing.assert_array_equal(tokenizer([text], 20)[0], tokenizer(["a photo of a red cat"], 20)[0])


def test_decode_gives_the_text_up_to_the_end(tokenizer):
    for text in ("a photo of a red cat", "", "in front of a pink house at night"):
        assert tokenizer.decode(tokenizer([text], 40)[0][0]) == text


def test_calls_from_several_threads_give_the_same_ids(tokenizer):
    texts = list(IDS) * 50
    expected = tokenizer(texts, 32)[0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for tokens, _ in pool.map(lambda _: tokenizer(texts, 32), range(8)):
            np.testing.assert_array_equal(tokens, expected)


def test_it_works_inside_a_tensorflow_pipeline(tokenizer):
    import tensorflow as tf

    def read(number):
        return tokenizer([list(IDS)[number]], 16)[0]

    dataset = tf.data.Dataset.range(len(IDS)).map(
        lambda number: tf.numpy_function(read, [number], tf.int32), num_parallel_calls=2
    )
    rows = np.concatenate(list(dataset.as_numpy_iterator()))
    np.testing.assert_array_equal(rows, tokenizer(list(IDS), 16)[0])


def test_tensorflow_is_not_loaded_for_other_vocabularies():
    program = "import sys; from jaxclip.data import tokenizers; tokenizers.train(['a'] * 9, 514)(['a'], 5)"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; sys.exit('tensorflow' in sys.modules)"],
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0


MODEL = (DATA / "siglip_form.model").read_bytes()
WRONG = {
    "empty": (b"", "damaged"),
    "text": (b"It was a dark and stormy night.", "damaged"),
    "cut short": (MODEL[:-100], "damaged"),
    "zeros": (bytes(1000), "damaged"),
    "no end": ((DATA / "no_end.model").read_bytes(), "no end token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_than_models_are_refused_in_one_line(tmp_path, name, capfd):
    content, reason = WRONG[name]
    path = tmp_path / "some.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_id": 100},
        {"pad_id": -1},
        {"pad_id": "1"},
        {"clean": "upper"},
        {"clean": ["lower"]},
        {"sentencepiece": "?"},
        {"sentencepiece": 3},
        {"sentencepiece": ""},
    ],
    ids=str,
)
def test_damaged_json_is_refused(changes):
    content = {"sentencepiece": base64.b64encode(MODEL).decode(), "pad_id": 1} | changes
    with pytest.raises(UserError, match="the stored tokenizer"):
        tokenizers.from_json(json.dumps(content))
