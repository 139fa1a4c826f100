"""Hostile vocabulary files: a one-line error or a usable tokenizer, and no crash of the process."""

from __future__ import annotations

import base64
import copy
import faulthandler
import json
import os
import pathlib
import resource
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from test_tokenizer_hugging_face import KINDS, bert, gpt2, unigram
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from jaxclip.data import tokenizers
from jaxclip.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxclip.errors import UserError

MEMORY = 3 << 29  # address space beyond that of the interpreter at the start
PROGRAM = "import sys, test_tokenizer_hostile as tests; tests.run_all(sys.argv[1])"
TEXTS = ["a red cat", "", "x" * 400, "a" * 3000, "\ufdfa <s> [CLS]"]
SLOW = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}


def sequence(steps: list, kind: str = "normalizers") -> dict:
    return {"type": "Sequence", kind: steps}


def replace(kind: str, pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def precompiled(length: int, rest: bytes) -> dict:
    charsmap = base64.b64encode(struct.pack("<I", length) + rest).decode()
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def nested(step: object, depth: int) -> object:
    for _ in range(depth):
        step = sequence([step])
    return step


def template(single: list, ids: int = 1) -> dict:
    special = {"x": {"id": "x", "ids": [1] * ids, "tokens": ["x"] * ids}}
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


TEXT, TOKEN = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "x", "type_id": 0}}
GROWING = [replace("String", "a", "a" * 200)] * 4
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
# U+FDFA is eighteen letters by NFKC, and each of these a U+FDFA again.
ROUNDS = [replace("Regex", r"[\s\S]", "\ufdfa"), {"type": "NFKC"}] * 6

# Values by key of the file.
HARMFUL: dict[str, tuple[str, Any]] = {
    "growing": ("normalizer", sequence(GROWING)),
    "growing without its types": (
        "normalizer",
        {"normalizers": [{"pattern": {"String": "a"}, "content": "a" * 200}] * 4},
    ),
    "growing in pieces": ("normalizer", sequence([sequence(GROWING[:2]), sequence(GROWING[:2])])),
    "growing by expressions": ("normalizer", sequence([replace("Regex", "a", "aa")] * 30)),
    "growing where nothing stands": ("normalizer", sequence([replace("Regex", "(?=a)", "a")] * 30)),
    "growing by empty patterns": ("normalizer", sequence([replace("String", "", "a")] * 30)),
    "growing before a text": ("normalizer", sequence([{"type": "Prepend", "prepend": "a" * 1000}] * 3)),
    "growing by Unicode": ("normalizer", sequence(ROUNDS)),
    "growing by bytes": ("pre_tokenizer", sequence([BYTES] * 30, "pretokenizers")),
    "growing by a trie": ("normalizer", precompiled(4, bytes(4) + b"a" * 100_000)),
    "growing back": ("decoder", sequence([replace("String", "a", "a" * 200)] * 4, "decoders")),
    "many steps": ("normalizer", sequence([{"type": "Strip", "strip_left": True, "strip_right": True}] * 5000)),
    "nested steps": ("normalizer", nested({"type": "NFC"}, 60)),
    "nested without end": ("normalizer", nested({"type": "NFC"}, 400)),
    "nested steps of no type": ("pre_tokenizer", {"pretokenizers": [{"pretokenizers": [nested(None, 30)]}]}),
    "a trie of no length": ("normalizer", precompiled(0, b"")),
    "a trie longer than all": ("normalizer", precompiled(0xFFFFFFF0, b"\xff" * 60)),
    "a trie that points outside": (
        "normalizer",
        precompiled(16, struct.pack("<4I", 0xFFFFFFFF, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000FFF) + b"abc"),
    ),
    "a text over and over": ("post_processor", sequence([template([TEXT, TEXT])] * 40, "processors")),
    "ids over and over": ("post_processor", template([TOKEN] * 5000 + [TEXT], 5000)),
    "a huge word": (
        "model",
        {"type": "WordPiece", "vocab": {"?": 0}, "unk_token": "?", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 1 << 62},
    ),
    "a huge unknown token": ("model", {"type": "WordLevel", "vocab": {"?" * 3000: 0}, "unk_token": "?" * 3000}),
    "a huge id": ("model", {"type": "WordLevel", "vocab": {"?": 4294967295}, "unk_token": "?"}),
    "an id too large": ("model", {"type": "WordLevel", "vocab": {"?": 1 << 70}, "unk_token": "?"}),
    "a negative id": ("model", {"type": "WordLevel", "vocab": {"?": -1}, "unk_token": "?"}),
    "an id that is no number": ("model", {"type": "WordLevel", "vocab": {"?": float("nan")}, "unk_token": "?"}),
    "scores that are no numbers": ("model", {"type": "Unigram", "unk_id": 0, "vocab": [["?", float("nan")]]}),
    "an unknown token outside": ("model", {"type": "Unigram", "unk_id": 1 << 40, "vocab": [["?", 0.0]]}),
    "merges of nothing": ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
    "an expression without end": ("normalizer", replace("Regex", "(" * 5000, "")),
}  # fmt: skip
# Values that may be usable: each gives a one-line error or works.
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
    "spaces over and over": ("pre_tokenizer", sequence([METASPACE] * 5, "pretokenizers")),
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
    """By name: the content of a file, and whether it must be rejected."""
    sound = json.loads(bert().to_str())
    found = {name: (json.dumps(sound | {key: value}), True) for name, (key, value) in HARMFUL.items()}
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
    grown = json.dumps({"normalizer": sequence(GROWING)})[1:-1]
    found["a key twice"] = json.dumps(sound)[:-1] + f", {grown}}}", True
    found["brackets"] = '{"model": ' + "[" * 200_000, True
    added = [{"id": 0, "content": "a" * 1_000_000, "normalized": True, "single_word": False, "lstrip": False,
              "rstrip": False, "special": False}]  # fmt: skip
    steps = sequence([replace("String", "a", "a" * 200)])
    found["growing added tokens"] = json.dumps(sound | {"added_tokens": added, "normalizer": steps}), True
    return found


def outcome(path: pathlib.Path) -> str:
    """The outcome of a file: "" if it can be used, or the error's line, or a failure."""
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
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("hostile"))],
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_each_is_refused_in_one_line_or_can_be_used(ran):
    assert len(ran) > 300
    assert not {name: said for name, said in ran.items() if said.startswith("wrong")}


def test_harmful_files_are_refused(ran):
    assert not [name for name, (_, refused) in files().items() if refused and not ran[name]]


def test_unusual_but_harmless_files_are_accepted(ran):
    used = ["a slow expression", "a slow split", "cut to nothing", "padded without end", "spaces over and over"]
    assert [ran[name] for name in used] == [""] * len(used)


@pytest.mark.parametrize("name", ["growing", "a trie that points outside", "a trie longer than all"])
def test_nothing_else_is_printed(tmp_path, name, capfd):
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


def test_texts_of_a_growing_vocabulary_are_encoded_in_portions():
    backend = bert()
    backend.normalizer = normalizers.Replace("c", "c" * 300)
    tokenizer = HuggingFaceTokenizer(backend.to_str())
    texts = ["a red cat", "a", "red a"] * 2000  # of six million characters once they are grown
    tokens, ends = tokenizer(texts, 6)
    few = tokenizer(texts[:3], 6)
    np.testing.assert_array_equal(tokens, np.tile(few[0], (2000, 1)))
    np.testing.assert_array_equal(ends, np.tile(few[1], 2000))


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
