"""Procedural scenes: determinism, truthful and balanced captions, and classes held out of training."""

import collections
import concurrent.futures
import math
import re

import numpy as np
import pytest

from jaxclip.data.sources.shapes import (
    CLASS_NAMES,
    HELD_OUT,
    SPLITS,
    TRAINED_ON,
    Shapes,
    describe,
    describe_fully,
    relation,
    render,
    sample_scene,
    swapped_scenes,
)
from jaxclip.data.sources.shapes_drawing import COLORS, PATTERNS, SHAPES, TONES, Background, Figure, Scene
from jaxclip.errors import UserError

LENGTHS = {"train": 20_000, "validation": 1_000, "seen": 960, "unseen": 320, "test": 500}
HOLLOW = ("ring", "crescent")  # their center shows the background


def scenes(split, count):
    return [sample_scene(split, i) for i in range(count)]


def test_classes_are_every_color_with_every_shape():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 80
    assert set(CLASS_NAMES) == {f"{color} {shape}" for color in COLORS for shape in SHAPES}


def test_a_fifth_of_the_classes_is_held_out_evenly():
    assert len(set(HELD_OUT)) == len(HELD_OUT) == 16
    assert sorted(HELD_OUT + TRAINED_ON) == list(range(80))
    colors, shapes = zip(*(CLASS_NAMES[index].split() for index in HELD_OUT), strict=True)
    assert set(collections.Counter(shapes).values()) == {2} and set(shapes) == set(SHAPES)
    assert set(collections.Counter(colors).values()) == {1, 2} and set(colors) == set(COLORS)


@pytest.mark.parametrize(("split", "length"), LENGTHS.items())
def test_length(split, length):
    assert len(Shapes(split)) == length


def test_unknown_split_is_a_user_error():
    with pytest.raises(UserError, match="no split 'held-out'; it has train, validation, seen, unseen, test"):
        Shapes("held-out")


@pytest.mark.parametrize("split", SPLITS)
def test_a_record_is_a_function_of_its_id(split):
    last = len(Shapes(split)) - 1
    first, *_ = Shapes(split, 48).read([last])
    assert first.key == f"shapes:{split}/{last}"
    for again in (Shapes(split, 48).read([3, 0, last])[2], Shapes(split, 48).read(np.array([last]))[0]):
        np.testing.assert_array_equal(again.image, first.image)
        assert (again.captions, again.key, again.label) == (first.captions, first.key, first.label)


def test_threads_read_the_same_records():
    source = Shapes("train", 32)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda i: source.read([i])[0], range(64)))
    for record, alone in zip(records, source.read(range(64)), strict=True):
        np.testing.assert_array_equal(record.image, alone.image)
        assert record.captions == alone.captions


def test_records_differ_between_ids_and_splits():
    images = {record.image.tobytes() for split in SPLITS for record in Shapes(split, 32).read(range(100))}
    assert len(images) == 100 * len(SPLITS)


@pytest.mark.parametrize("size", [16, 64, 97])
def test_images_are_uint8_rgb_of_the_size_asked_for(size):
    (record,) = Shapes("train", size).read([5])
    assert record.image.shape == (size, size, 3)
    assert record.image.dtype == np.uint8


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_classes_never_appear(split):
    allowed = {CLASS_NAMES[index] for index in TRAINED_ON}
    for scene in scenes(split, 1000 if split == "validation" else 4000):
        assert {figure.name for figure in scene.figures} <= allowed


def test_four_in_ten_scenes_of_training_have_two_objects_and_all_of_validation():
    assert 0.37 < np.mean([len(scene.figures) == 2 for scene in scenes("train", 4000)]) < 0.43
    assert all(len(scene.figures) == 2 for scene in scenes("validation", 1000))


def test_every_training_class_appears_alone_and_in_pairs():
    for objects in (1, 2):
        names = {f.name for scene in scenes("train", 4000) if len(scene.figures) == objects for f in scene.figures}
        assert names == {CLASS_NAMES[index] for index in TRAINED_ON}


def test_every_color_and_shape_is_trained_on_with_several_partners():
    colors, shapes = zip(*(CLASS_NAMES[index].split() for index in TRAINED_ON), strict=True)
    assert min(collections.Counter(colors).values()) >= 6  # of 8 shapes
    assert min(collections.Counter(shapes).values()) >= 8  # of 10 colors


@pytest.mark.parametrize(("split", "classes", "each"), [("seen", TRAINED_ON, 15), ("unseen", HELD_OUT, 20)])
def test_evaluation_splits_show_their_classes_evenly(split, classes, each):
    records = Shapes(split, 16).read(range(len(Shapes(split))))
    assert collections.Counter(record.label for record in records) == dict.fromkeys(classes, each)
    for record, scene in zip(records, scenes(split, len(records)), strict=True):
        assert [figure.name for figure in scene.figures] == [CLASS_NAMES[record.label]]
        assert CLASS_NAMES[record.label] in record.captions[0]


def test_labels_are_of_single_objects_only():
    for record, scene in zip(Shapes("train", 16).read(range(200)), scenes("train", 200), strict=True):
        if len(scene.figures) == 2:
            assert record.label is None
        else:
            assert CLASS_NAMES[record.label] == scene.figures[0].name


def test_every_background_size_and_relation_appears():
    sample = scenes("train", 2000)
    assert {(s.background.pattern, s.background.tone) for s in sample} == {(p, t) for p in PATTERNS for t in TONES}
    alone = [s.figures[0] for s in sample if len(s.figures) == 1]
    assert {figure.size for figure in alone} == {"small", "large"}
    assert 0.45 <= min(f.x for f in alone) < 0.46 and 0.54 < max(f.y for f in alone) <= 0.55
    pairs = [s.figures for s in sample if len(s.figures) == 2]
    counts = collections.Counter(relation(*pair) for pair in pairs)
    assert set(counts) == {"left of", "right of", "above", "below"}
    assert min(counts.values()) > 0.2 * len(pairs)


@pytest.mark.parametrize("split", SPLITS)
def test_objects_lie_inside_the_image_apart_and_of_distinct_sizes(split):
    for scene in scenes(split, 300):
        for figure in scene.figures:
            assert figure.radius < min(figure.x, figure.y, 1 - figure.x, 1 - figure.y)
            low, high = {"small": (0, 0.2), "large": (0.2, 0.32)}[figure.size]
            assert low < figure.radius <= high
        if len(scene.figures) == 2:
            first, second = scene.figures
            assert first.name != second.name
            assert math.hypot(first.x - second.x, first.y - second.y) > first.radius + second.radius


def test_relations_hold_by_a_wide_margin():
    for first, second in (scene.figures for scene in scenes("validation", 1000)):
        x, y = second.x - first.x, second.y - first.y
        along, across = {"left of": (x, y), "right of": (-x, y), "above": (y, x), "below": (-y, x)}[
            relation(first, second)
        ]
        assert along > first.radius + second.radius  # the objects are apart along that very axis
        assert abs(across) <= 0.4 * along + 1e-9


def test_every_polygon_lies_in_the_unit_circle():
    for name, polygons in SHAPES.items():
        assert 0.85 < np.abs(polygons[0]).max() <= 1 + 1e-9, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tone", TONES)
def test_drawn_pixels_stay_in_the_object_and_have_its_color(shape, tone):
    background = Background("plain", tone, TONES[tone][0], 0.2, 0.0, bytes(25))
    empty = render(Scene((), background), 64).astype(int)
    for color, expected in COLORS.items():
        figure = Figure(color, shape, "large", 0.42, 0.55, 0.25, 0.2)
        image = render(Scene((figure,), background), 64).astype(int)
        rows, columns = np.nonzero((image != empty).any(-1))
        distances = np.hypot((columns + 0.5) / 64 - figure.x, (rows + 0.5) / 64 - figure.y)
        assert 0.8 * figure.radius < distances.max() < figure.radius + 1.5 / 64
        exact = np.abs(image - expected).max(-1) == 0
        assert exact.sum() > 0.2 * (math.pi * (figure.radius * 64) ** 2)


def test_rings_have_no_seam():
    background = Background("plain", "grey", TONES["grey"][0], 0.2, 0.0, bytes(25))
    around = np.linspace(0, 2 * math.pi, 200)
    for step in range(40):
        ring = Figure("yellow", "ring", "large", 0.5 + 0.003 * step, 0.5, 0.22 + 0.002 * step, 0.013 * (step - 20))
        image = render(Scene((ring,), background), 96)
        band = 0.64 * ring.radius * np.stack([np.sin(around), np.cos(around)])  # midway between hole and rim
        rows, columns = ((band + [[ring.y], [ring.x]]) * 96).astype(int)
        assert (image[rows, columns] == COLORS["yellow"]).all()


@pytest.mark.parametrize("size", [48, 96])
def test_the_color_named_is_the_color_at_the_center(size):
    names, table = list(COLORS), np.array(list(COLORS.values()))
    for split in SPLITS:
        for scene in scenes(split, 100):
            image = render(scene, size).astype(int)
            for figure in scene.figures:
                if figure.shape not in HOLLOW:
                    pixel = image[int(figure.y * size), int(figure.x * size)]
                    assert names[np.abs(table - pixel).sum(-1).argmin()] == figure.color


def test_tones_of_backgrounds_are_desaturated_and_clearly_light_or_gray():
    for tone, pairs in TONES.items():
        for rgb in (rgb for pair in pairs for rgb in pair):
            assert max(rgb) - min(rgb) <= 32  # the least colorful object, brown, has 84
            assert min(rgb) >= 180 if tone == "light" else min(rgb) > 120 and max(rgb) < 175


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mix_both_tones_and_nothing_else(pattern):
    first, second = TONES["light"][0]
    noise = bytes(255 * (i % 2) for i in range(25))
    image = render(Scene((), Background(pattern, "light", (first, second), 0.2, 0.7, noise)), 64)
    low, high = np.minimum(first, second), np.maximum(first, second)
    assert ((image >= low) & (image <= high)).all()
    assert (np.ptp(image, axis=(0, 1)) > 0.8 * (high - low)).all() == (pattern != "plain")


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_distinct_lower_case_and_name_every_object(split):
    for record, scene in zip(Shapes(split, 16).read(range(200)), scenes(split, 200), strict=True):
        assert len(set(record.captions)) == len(record.captions) >= 4
        for caption in record.captions:
            assert caption == caption.lower()
            assert all(figure.name in caption for figure in scene.figures)
            assert " a o" not in f" {caption}"  # an orange, not a orange


def test_single_objects_are_also_described_plainly():
    for scene in scenes("seen", 128):
        name = scene.figures[0].name
        assert describe(scene)[0] == f"a{'n' if name.startswith('o') else ''} {name}"


def test_captions_never_name_what_is_not_there():
    for split in SPLITS:
        for scene in scenes(split, 200):
            true = {word for figure in scene.figures for word in (figure.color, figure.shape, figure.size)}
            true |= {scene.background.pattern, scene.background.tone}
            false = {*COLORS, *SHAPES, *PATTERNS, *TONES, "small", "large"} - true
            for caption in describe(scene):
                assert not false & set(caption.split())


def test_captions_of_a_known_scene():
    background = Background("striped", "grey", TONES["grey"][0], 0.2, 0.0, bytes(25))
    circle = Figure("orange", "circle", "small", 0.2, 0.25, 0.13, 0.0)
    star = Figure("blue", "star", "large", 0.7, 0.4, 0.21, 0.0)
    assert describe(Scene((circle,), background)) == (
        "an orange circle",
        "orange circle on a striped background",
        "there is an orange circle",
        "a picture of a small orange circle",
        "a small orange circle on a grey striped background",
        "a grey striped background with a small orange circle",
    )
    assert describe(Scene((circle, star), background)) == (
        "orange circle and blue star",
        "a blue star and an orange circle on a striped background",
        "an orange circle to the left of a blue star",
        "a large blue star right of a small orange circle",
        "a picture of a small orange circle left of a large blue star",
        "a small orange circle to the left of a large blue star on a grey striped background",
        "a grey striped background with a large blue star to the right of a small orange circle",
    )


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0.8, 0.5, "left of"), (0.1, 0.5, "right of"), (0.5, 0.9, "above"), (0.4, 0.1, "below")],
)
def test_relation_of_the_first_object_to_the_second(x, y, expected):
    first = Figure("red", "circle", "small", 0.45, 0.5, 0.12, 0.0)
    assert relation(first, Figure("blue", "star", "small", x, y, 0.12, 0.0)) == expected


def test_validation_captions_tell_its_scenes_apart():
    sample = scenes("validation", 1000)
    assert Shapes("validation", 16).read([7])[0].captions == describe_fully(sample[7])
    for position in range(4):
        captions = collections.Counter(describe_fully(scene)[position] for scene in sample)
        assert sum(count for count in captions.values() if count > 1) < 50


def claims(caption):
    """What a caption of the form "a picture of a small red circle left of a large blue square" says."""
    one = r"(\w+) (\w+) (\w+)"
    found = re.fullmatch(rf"a picture of a {one} (left of|right of|above|below) a {one}", caption).groups()
    return found[:3], found[3], found[4:]


def test_swapped_captions_are_false_and_differ_in_one_thing():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kinds = collections.Counter()
    for i in range(300):
        scene = sample_scene("validation", i)
        caption, negatives = Shapes("validation").negatives(i)
        one, place, other = claims(caption)
        assert one == (scene.figures[0].size, scene.figures[0].color, scene.figures[0].shape)
        assert caption in describe_fully(scene)
        kinds.update(negatives)
        expected = {"swap_obj": (other, place, one), "replace_rel": (one, opposite[place], other)}
        if one[0] != other[0]:
            expected["swap_size"] = ((other[0], *one[1:]), place, (one[0], *other[1:]))
        recolored = (one[0], other[1], one[2]), place, (other[0], one[1], other[2])
        if "swap_color" in negatives:
            assert one[1] != other[1] and one[2] != other[2]
            expected["swap_color"] = recolored
        else:
            held_out = {f"{color} {shape}" for _, color, shape in (recolored[0], recolored[2])} & {
                CLASS_NAMES[index] for index in HELD_OUT
            }
            assert one[1] == other[1] or one[2] == other[2] or held_out
        assert {kind: claims(text) for kind, text in negatives.items()} == expected
        true = {(one, place, other), (other, opposite[place], one)}
        assert true.isdisjoint(map(claims, negatives.values()))
    assert len(kinds) == 4


def test_scenes_of_one_object_have_nothing_to_swap():
    assert swapped_scenes(sample_scene("seen", 0)) == {}
    caption, negatives = Shapes("seen").negatives(0)
    assert caption in describe_fully(sample_scene("seen", 0)) and negatives == {}
