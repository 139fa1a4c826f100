"""Published files of class names and phrases: CLIP_benchmark's JSON and open_clip's Python."""

from __future__ import annotations

import json
import subprocess

import pytest

from jaxclip.errors import UserError
from jaxclip.evaluate.prompts import read_prompts

CLASSES, TEMPLATES = "en_classnames.json", "en_zeroshot_classification_templates.json"

PYTHON = """
import os

os.mkdir({folder!r})

OPENAI_IMAGENET_TEMPLATES = (
    lambda c: f'a good photo of a {{c}}.',
    lambda c: f"a {{c}} in {{{{braces}}}}",
)
SIMPLE_IMAGENET_TEMPLATES = [lambda name: f'{{name}}']
IMAGENET_CLASSNAMES = ("tench", "lady's slipper")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / CLASSES).write_text(json.dumps({"pets": ["cat", "dog"], "mnist": ["0"]}))
    (tmp_path / TEMPLATES).write_text(json.dumps({"pets": ["a photo of a {c}."], "cars": ["a {c} car", "{c}"]}))
    return tmp_path


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "zero_shot_metadata.py"
    path.write_text(PYTHON.format(folder=str(tmp_path / "was_run")))
    return path


@pytest.mark.parametrize("name", ["", CLASSES, TEMPLATES])
def test_either_file_or_their_folder_gives_both(folder, name):
    found = read_prompts(str(folder / name), "pets")
    assert (found.classes, found.templates) == (("cat", "dog"), ("a photo of a {c}.",))
    assert found.source == f"pets in {folder / name}"


def test_a_data_set_may_have_names_or_phrases_alone(folder):
    assert read_prompts(str(folder), "mnist").templates == ()
    assert read_prompts(str(folder), "cars").classes == ()
    (folder / CLASSES).unlink()
    assert read_prompts(str(folder), "pets").classes == ()


def test_the_name_may_be_left_out_of_a_file_of_one_data_set(tmp_path):
    (tmp_path / "it_classnames.json").write_text(json.dumps({"pets": ["gatto"]}))
    assert read_prompts(str(tmp_path / "it_classnames.json")).classes == ("gatto",)


def test_open_clips_file_is_read_and_not_run(metadata, tmp_path):
    found = read_prompts(str(metadata), "openai_imagenet")
    assert found.classes == ("tench", "lady's slipper")
    assert found.templates == ("a good photo of a {c}.", "a {c} in {braces}")
    assert read_prompts(str(metadata), "simple_imagenet").templates == ("{c}",)
    assert read_prompts(str(metadata), "imagenet").templates == ()
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("", "has several data sets; add one as .*:cars, or mnist, pets"),
        ("pet", "has no data set pet; did you mean pets"),
        ("imagenet", "has no data set imagenet; choose one of cars, mnist, pets"),
    ],
)
def test_a_data_set_that_is_not_there_names_those_that_are(folder, dataset, said):
    with pytest.raises(UserError, match=said):
        read_prompts(str(folder), dataset)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (CLASSES, "{", "en_classnames.json is not JSON"),
        (CLASSES, "[]", "en_classnames.json must hold a list by data set"),
        (CLASSES, '{"pets": "cat"}', "the class names of pets must be a list of texts"),
        (CLASSES, '{"pets": [1]}', "the class names of pets must be a list of texts"),
        (CLASSES, "{}", "has neither class names nor phrases"),
        (TEMPLATES, '{"pets": ["a photo"]}', "'a photo' has no {c} to put the text in"),
        ("other.json", "{}", "must be a folder, a file named ..._classnames.json or"),
        ("m.py", "A = (", "is not Python"),
        ("m.py", "A = 1", "has neither class names nor phrases"),
        ("m.py", "A_CLASSNAMES = [open('x')]", "the class names of a must be a list of texts"),
        ("m.py", "A_TEMPLATES = [lambda c: c.upper()]", "line 1 of"),
        ("m.py", "A_TEMPLATES = [lambda c: f'a {d}']", "must be a phrase such as lambda c: f'a photo of a {c}.'"),
        ("m.py", "A_TEMPLATES = [lambda c: f'a {c!r}']", "must be a phrase such as"),
        ("m.py", "A_TEMPLATES = [lambda c: f'a photo']", "'a photo' has no {c} to put the text in"),
        ("m.py", f"A = {'(' * 150}1{')' * 150}", "has neither class names nor phrases"),
        ("m.py", f"A = {'[' * 5000}", "m.py"),
        (CLASSES, "[" * 100_000, "en_classnames.json"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_prompts(str(tmp_path / name))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.py", "m.py cannot be read: No such file or directory"),
        (CLASSES, "has no en_classnames.json and no en_zeroshot_classification_templates.json"),
        ("", "has no en_classnames.json and no en_zeroshot_classification_templates.json"),
    ],
)
def test_a_file_that_does_not_exist_is_named(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        read_prompts(str(tmp_path / name), "pets")


@pytest.mark.peer
def test_open_clips_own_file_reads_as_python_evaluates_it(peer_python):
    code = """
import importlib.util, json, runpy
path = importlib.util.find_spec("open_clip").submodule_search_locations[0] + "/zero_shot_metadata.py"
found = runpy.run_path(path)
print(json.dumps([path, found["IMAGENET_CLASSNAMES"], [one("{c}") for one in found["OPENAI_IMAGENET_TEMPLATES"]]]))
"""
    done = subprocess.run([peer_python, "-c", code], capture_output=True, text=True, check=True)
    path, classes, templates = json.loads(done.stdout)
    found = read_prompts(path, "openai_imagenet")
    assert (len(classes), len(templates)) == (1000, 80)
    assert (list(found.classes), list(found.templates)) == (classes, templates)
