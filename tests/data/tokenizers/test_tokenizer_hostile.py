"""Damaged and hostile vocabulary files: each is refused in one line or can be used.

What is not guarded against: a tokenizer.json that is made to fill the memory or to take forever, such as by a
normalizer that writes hundreds of letters for each, over and over. Neither executes code.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import pathlib
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from test_tokenizer_hugging_face import KINDS, bert, gpt2, unigram
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers import hugging_face
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.errors import UserError

pytestmark = pytest.mark.hostile
MEMORY = 3 << 29  # address space beyond that of the interpreter at the start
PROGRAM = "import sys, test_tokenizer_hostile as tests; tests.run_all(sys.argv[1])"
TEXTS = ["a red cat", "", "x" * 400, "a" * 3000, "\ufdfa <s> [CLS]"]
SLOW = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}


def replace(kind: str, pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


# By which key of the file, what stands there.
REFUSED: dict[str, tuple[str, Any]] = {
    "a huge id": ("model", {"type": "WordLevel", "vocab": {"?": 4294967295}, "unk_token": "?"}),
    "an id too large": ("model", {"type": "WordLevel", "vocab": {"?": 1 << 70}, "unk_token": "?"}),
    "a negative id": ("model", {"type": "WordLevel", "vocab": {"?": -1}, "unk_token": "?"}),
    "an id that is no number": ("model", {"type": "WordLevel", "vocab": {"?": float("nan")}, "unk_token": "?"}),
    "scores that are no numbers": ("model", {"type": "Unigram", "unk_id": 0, "vocab": [["?", float("nan")]]}),
    "an unknown token outside": ("model", {"type": "Unigram", "unk_id": 1 << 40, "vocab": [["?", 0.0]]}),
    "merges of nothing": ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
    "an expression without end": ("normalizer", replace("Regex", "(" * 5000, "")),
}
# What may be usable: whichever it is, it is said in one line or works.
DOUBTFUL: dict[str, tuple[str, Any]] = {
    "ids without end": (
        "added_tokens",
        [{"id": 4294967295, "content": "x", "special": True, "normalized": False, "single_word": False,
          "lstrip": False, "rstrip": False}],
    ),
    "a slow expression": ("normalizer", SLOW),
    "a slow split": (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
    ),
    "ids twice": ("model", {"type": "WordLevel", "vocab": {"?": 0, "[PAD]": 0, "[SEP]": 0}, "unk_token": "?"}),
    "ids far apart": ("model", {"type": "WordLevel", "vocab": {"?": 0, "b": 9_000_000}, "unk_token": "?"}),
    "cut to nothing": (
        "truncation",
        {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5},
    ),
    "padded without end": (
        "padding",
        {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0,
         "pad_type_id": 0, "pad_token": "[PAD]"},
    ),
}  # fmt: skip
STRANGE = [
    None,
    True,
    -1,
    1 << 70,
    float("nan"),
    "x",
    "\ud800",
    [],
    [[]],
    {},
    {"type": 5},
    {"type": "Sequence"},
    [None],
]


def files() -> dict[str, tuple[str, bool]]:
    """By name: what is in a file, and whether it must be refused."""
    sound = json.loads(bert().to_str())
    found = {name: (json.dumps(sound | {key: value}), True) for name, (key, value) in REFUSED.items()}
    found |= {name: (json.dumps(sound | {key: value}), False) for name, (key, value) in DOUBTFUL.items()}
    for key in sound:
        found[f"no {key}"] = json.dumps({name: value for name, value in sound.items() if name != key}), False
        for number, value in enumerate(STRANGE):
            found[f"{key} is {number}"] = json.dumps(sound | {key: value}), False
    for kind in (bert, unigram, gpt2):
        whole = json.loads(kind().to_str())
        for part in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
            for key in whole[part] or ():
                for number, value in enumerate(STRANGE):
                    changed = copy.deepcopy(whole)
                    changed[part][key] = value
                    found[f"{kind.__name__}: {part}.{key} is {number}"] = json.dumps(changed), False
    found["brackets"] = '{"model": ' + "[" * 200_000, True
    return found


def outcome(path: pathlib.Path) -> str:
    """What comes of a file: "" where it can be used, or the error's line, or what went wrong."""
    try:
        tokenizer = tokenizers.load(path)
        tokens, ends = tokenizer(TEXTS, 16)
        if tokens.shape != (len(TEXTS), 16) or not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
            return f"wrong: {tokens}, {ends}"
        tokenizer.decode(tokens[0])
        tokenizers.from_json(tokenizer.to_json())
    except UserError as error:
        line = str(error)
        return line if str(path) in line and "\n" not in line and len(line) < 900 else f"wrong: {line!r}"
    except BaseException as error:
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    return ""


def run_all(place: str) -> None:
    """Prints {name: outcome} of every hostile file, which this process opens in limited memory."""
    hostile = files()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    faulthandler.dump_traceback_later(200, exit=True)
    outcomes = {}
    path = pathlib.Path(place, "tokenizer.json")
    for name, (content, _) in hostile.items():
        path.write_text(content)
        outcomes[name] = outcome(path)
    print(json.dumps(outcomes))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("hostile"))],
        cwd=ROOT / "tests/data/tokenizers",
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}", "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_each_is_refused_in_one_line_or_can_be_used(ran):
    assert len(ran) > 300
    assert not {name: said for name, said in ran.items() if said.startswith("wrong")}


def test_what_no_vocabulary_can_be_is_refused(ran):
    assert not [name for name, (_, refused) in files().items() if refused and not ran[name]]


def test_what_is_only_strange_is_not_refused_for_that(ran):
    used = ["a slow expression", "a slow split", "cut to nothing", "padded without end"]
    assert [ran[name] for name in used] == [""] * len(used)


@pytest.mark.parametrize("name", ["a huge id", "merges of nothing", "an expression without end"])
def test_nothing_else_is_said_of_it(tmp_path, name, capfd):
    (tmp_path / "tokenizer.json").write_text(files()[name][0])
    with pytest.raises(UserError):
        tokenizers.load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_text_that_the_library_fails_on_is_an_empty_one():
    backend = bert()
    backend.normalizer = normalizers.Replace(Regex("(x+x+)+y"), "")
    tokenizer = HuggingFaceTokenizer(backend.to_str())
    with pytest.raises(BaseException, match="retry-limit"):
        backend.encode("x" * 400)
    tokens, ends = tokenizer(["a red cat", "x" * 400, "cats"], 8)
    expected = tokenizer(["a red cat", "", "cats"], 8)
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_array_equal(ends, expected[1])
    assert tokens[1].tolist() == [2, 3, *[0] * 6]


def test_texts_are_encoded_in_portions(monkeypatch):
    tokenizer = HuggingFaceTokenizer(bert().to_str())
    texts = ["a red cat", "a", "red a"] * 20
    whole = tokenizer(texts, 6)
    monkeypatch.setattr(hugging_face, "_AT_ONCE", 16)
    np.testing.assert_array_equal(tokenizer(texts, 6)[0], whole[0])
    np.testing.assert_array_equal(tokenizer(texts, 6)[1], whole[1])


# Steps as published vocabularies have them, in the order of T5's, XLM-R's, Llama's, Gemma's, BERT's and DeBERTa's.
SOUND = {
    "t5": [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), "\u2581")],
    "xlm-r": [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")],
    "llama": [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")],
    "gemma": [normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")],
    "bert": [normalizers.BertNormalizer()],
    "deberta": [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.Lowercase()],
}


@pytest.mark.parametrize("clean", [None, "whitespace", "lower", "canonicalize", "siglip"])
@pytest.mark.parametrize("steps", SOUND)
def test_published_steps_can_be_used_and_cleaned(steps, clean):
    backend = unigram()
    backend.normalizer = normalizers.Sequence(SOUND[steps])
    tokenizer = HuggingFaceTokenizer(backend.to_str(), clean=clean)
    assert tokenizers.from_json(tokenizer.to_json()).to_json() == tokenizer.to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_vocabulary_is_read_with_any_pre_tokenizer_before_its_own(kind):
    backend: Tokenizer = KINDS[kind]()
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    tokens, _ = HuggingFaceTokenizer(backend.to_str())(["a red circle, 1"], 40)
    backend.enable_truncation(40)
    ids = backend.encode("a red circle, 1").ids
    assert tokens[0, : len(ids)].tolist() == ids
