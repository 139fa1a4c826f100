"""Class names and phrases of well-known data sets, and how an evaluation chooses among them."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set
from paths import ROOT

from jaxclip.data.skips import SkipLog
from jaxclip.data.sources.tfds_labels import label_names
from jaxclip.errors import UserError
from jaxclip.evaluate import prompts
from jaxclip.evaluate.zeroshot_classification import Evaluator

LISTS = tomllib.loads((ROOT / "jaxclip/evaluate/prompts/known.toml").read_text())
# Importing TensorFlow's video features takes some ten seconds.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "ucf101" else name for name in prompts.known()]
# As the data sets' papers say.
COUNTS = {
    "caltech101": 102,
    "cifar10": 10,
    "cifar100": 100,
    "clevr_counts": 8,
    "country211": 211,
    "dtd": 47,
    "eurosat": 10,
    "fer2013": 7,
    "food101": 101,
    "gtsrb": 43,
    "hateful_memes": 2,
    "imagenet": 1000,
    "imagenet_a": 200,
    "imagenet_r": 200,
    "imagenet_sketch": 1000,
    "kitti_distance": 4,
    "mnist": 10,
    "oxford_flowers102": 102,
    "oxford_pets": 37,
    "pcam": 2,
    "rendered_sst2": 2,
    "resisc45": 45,
    "stanford_cars": 196,
    "stl10": 10,
    "sun397": 397,
    "svhn": 10,
    "ucf101": 101,
    "voc2007": 20,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_list_has_as_many_names_as_its_data_set_has_classes_and_all_differ(name):
    found = prompts.find(name)
    assert len(found.classes) == COUNTS.get(name, 0)
    assert len({class_name.lower() for class_name in found.classes}) == len(found.classes)
    assert len(found.ids) in (0, len(found.classes)) and len(set(found.ids)) == len(found.ids)
    # What a label file would leave: underscores, SUN397's paths, CamelCase of several words.
    assert not [one for one in found.classes if "_" in one or one.startswith("/") or one != one.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_a_list_has_two_to_eight_phrases_that_take_any_name_and_names_its_source(name):
    found = prompts.find(name)
    assert 2 <= len(set(found.templates)) == len(found.templates) <= 8
    assert all(template.count("{c}") == 1 for template in found.templates)
    assert found.source and (found.license or not found.classes)


@pytest.mark.parametrize("name", NAMES)
def test_only_labels_that_exist_are_renamed(name):
    assert LISTS[name].get("renamed", {}).keys() <= set(prompts.find(name).ids)


def test_names_of_imagenet_are_in_the_order_of_its_labels_in_tensorflow_datasets():
    assert prompts.find("imagenet").ids == label_names("imagenet2012")


def test_synsets_of_one_word_have_names_of_their_own():
    """WordNet's lemma alone would be crane, maillot, cardigan, kite, mouse, nail, boxer, tank, ram, bow."""
    names = dict(zip(prompts.find("imagenet").ids, prompts.find("imagenet").classes, strict=True))
    pairs = {
        "n02012849": "wading crane",
        "n03126707": "construction crane",
        "n03710637": "maillot",
        "n03710721": "one-piece swimsuit",
        "n02113186": "Cardigan Welsh corgi",
        "n02963159": "cardigan sweater",
        "n01608432": "kite raptor",
        "n03793489": "computer mouse",
        "n03804744": "metal nail",
        "n02108089": "boxer dog",
        "n04389033": "army tank",
        "n02412080": "male sheep",
        "n02879718": "archery bow",
        "n01847000": "male duck",
    }
    assert {synset: names[synset] for synset in pairs} == pairs


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_a_part_of_imagenet_has_the_same_names(name):
    whole, part = prompts.find("imagenet"), prompts.find(name)
    assert part.classes == whole.names_for(part.ids)


def test_labels_of_tensorflow_datasets_become_words():
    assert prompts.find("food101").classes[0] == "apple pie"
    assert "indoor church" in prompts.find("sun397").classes
    assert prompts.find("eurosat").ids[0] == "AnnualCrop"


@pytest.mark.parametrize(
    ("name", "said"), [("no_such_set", "has no labels of it"), ("cifar10", "has no names for its")]
)
def test_labels_that_tensorflow_datasets_does_not_know_are_one_line(name, said):
    with pytest.raises(UserError, match=f"^tfds:{name}: TensorFlow Datasets [0-9.]+ {said}"):
        label_names(name)


def test_an_unknown_list_names_the_nearest():
    with pytest.raises(UserError, match=r"^imagenet_v is not a known list of class names; did you mean imagenet"):
        prompts.find("imagenet_v")


def test_names_follow_the_labels_of_the_data():
    """By id, by name but for capitals, and by number if some labels are not known."""
    found = prompts.PromptSet(("cat", "guinea pig", "eel"), (), ids=("n1", "n2", "n3"))
    assert found.names_for(()) == found.classes
    assert found.names_for(("n3", "n1")) == ("eel", "cat")
    assert found.names_for(("Guinea_Pig", "eel", "cat")) == ("guinea pig", "eel", "cat")
    assert found.names_for(("a cat", "guinea pig", "an eel")) == found.classes


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("fox",), "3 names for 1 classes of the data"),
        (("eel", "fox", "cat"), "eel is number 0 of the data, and number 2 here"),
    ],
)
def test_names_of_other_data_or_in_another_order_are_refused(labels, said):
    with pytest.raises(UserError, match=said):
        prompts.PromptSet(("cat", "guinea pig", "eel"), ()).names_for(labels)


def test_an_evaluation_takes_names_and_phrases_of_a_known_list(tmp_path):
    chosen = Evaluator("data", "gtsrb").prepare(NoRecords(), str(tmp_path))
    assert (chosen.classes, chosen.templates) == (prompts.find("gtsrb").classes, prompts.find("gtsrb").templates)
    own = Evaluator("data", "gtsrb", templates=("a {c}",)).prepare(NoRecords(), str(tmp_path))
    assert (own.classes, own.templates) == (chosen.classes, ("a {c}",))


def test_a_source_with_synsets_gets_the_names_of_these(tmp_path):
    source = NoRecords("n02102040", "n01440764")
    assert Evaluator("data", "imagenet").prepare(source, str(tmp_path)).classes == ("English springer spaniel", "tench")


def test_a_file_wins_over_a_list_of_its_name(tmp_path):
    (tmp_path / "dtd").write_text('["smooth"]')
    assert Evaluator("data", "dtd").prepare(NoRecords(), str(tmp_path)).classes == ("smooth",)


def test_a_list_of_phrases_alone_leaves_the_names_to_the_data(tmp_path):
    chosen = Evaluator("data", "birdsnap").prepare(NoRecords("wren"), str(tmp_path))
    assert chosen.classes == ("wren",) and chosen.templates == prompts.find("birdsnap").templates
    with pytest.raises(UserError, match="^classes is missing: data does not say its class names"):
        Evaluator("data", "birdsnap").prepare(NoRecords(), str(tmp_path))


@pytest.mark.parametrize(
    ("classes", "labels", "said"),
    [
        ("imagnet", (), "classes: imagnet is neither a file nor a known list; did you mean imagenet"),
        ("gtsrb", ("stop",) * 2 + ("go",), "classes=gtsrb does not have the classes of data: 43 names for 3 classes"),
    ],
)
def test_a_list_that_does_not_exist_or_fit_is_one_line(tmp_path, classes, labels, said):
    with pytest.raises(UserError) as caught:
        Evaluator("data", classes).prepare(NoRecords(*labels), str(tmp_path))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_published_file_gives_names_and_phrases_and_the_result_says_so(tmp_path):
    (tmp_path / "en_classnames.json").write_text(json.dumps({"pets": ["cat", "dog"], "cars": ["van"]}))
    (tmp_path / "en_zeroshot_classification_templates.json").write_text(
        json.dumps({"pets": ["a {c}"], "cars": ["{c}"]})
    )
    evaluator = Evaluator("data", prompts=".:pets")
    chosen = evaluator.prepare(NoRecords(), str(tmp_path))
    assert chosen[:2] == (("cat", "dog"), ("a {c}",))
    # What is named apart wins.
    other = Evaluator("data", "stl10", prompts=".:pets").prepare(NoRecords(), str(tmp_path))
    assert other[:2] == (prompts.find("stl10").classes, ("a {c}",))
    table = {"a cat": [1.0, 0.0], "a dog": [0.0, 1.0]}
    encoder = LookUp(table, embedded_set(np.eye(2), labels=[0, 1]))
    result = evaluator.run(encoder, None, NoRecords(), SkipLog(), chosen)
    assert result.further["prompts_source"] == {"classes": "prompts=.:pets", "templates": "prompts=.:pets"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (".", "prompts: {root} has several data sets"),
        (".:dogs", "prompts: {root} has no data set dogs; choose one of cars, pets"),
        ("none.json:pets", "prompts: {root}/none.json must be a folder"),
    ],
)
def test_a_published_file_that_cannot_be_used_is_one_line_that_begins_with_the_key(tmp_path, given, said):
    (tmp_path / "en_classnames.json").write_text(json.dumps({"pets": ["cat"], "cars": ["van"]}))
    with pytest.raises(UserError) as caught:
        Evaluator("data", prompts=given).prepare(NoRecords(), str(tmp_path))
    assert str(caught.value).startswith(said.format(root=tmp_path)) and "\n" not in str(caught.value)


def test_a_result_names_the_source_of_a_known_list(tmp_path):
    chosen = Evaluator("data", "hateful_memes").prepare(NoRecords(), str(tmp_path))
    assert chosen.classes_source.startswith("classes=hateful_memes: Hateful Memes (Kiela et al. 2020)")
    assert chosen.templates_source == "classes=hateful_memes: jaxclip"
    plain = Evaluator("data").prepare(NoRecords("cat"), str(tmp_path))
    assert (plain.classes_source, plain.templates_source) == ("data", "default")
