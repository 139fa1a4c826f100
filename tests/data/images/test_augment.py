"""Random augmentations: distributions of the draws, dependence on the rng alone, and keys in a config."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from PIL import Image

from jaxclip.config import AugmentConfig
from jaxclip.data.images import adjust
from jaxclip.data.images.augment import Affine, ColorJitter, GaussianBlur, Grayscale, RandAugment, from_config
from jaxclip.errors import UserError

STRONG = [
    Affine(20, 0.1, (0.95, 1.05)),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    Grayscale(1.0),
    GaussianBlur(1.0, (0.5, 2.0)),
    RandAugment(8, 9, 1.0),
]
NEUTRAL = [
    Affine(0),
    ColorJitter(0, 0, 0, 0),
    ColorJitter(0.4, 0.4, 0.4, 0.1, p=0),
    Grayscale(0),
    GaussianBlur(0),
    RandAugment(0),
    RandAugment(2, 7, p=0),
]


def random_image(height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def watch(monkeypatch, *names: str) -> list[tuple]:
    """The calls of functions of `adjust` from now on: the name, and the arguments after the image. They still run."""
    calls: list[tuple] = []

    def watched(name: str, function):
        return lambda image, *arguments: calls.append((name, *arguments)) or function(image, *arguments)

    for name in names:
        monkeypatch.setattr(adjust, name, watched(name, getattr(adjust, name)))
    return calls


def assert_uniform(values, low: float, high: float) -> None:
    """Kolmogorov and Smirnov: the distribution function is off by 1.95 / sqrt(n) in one case of a thousand."""
    values = np.sort(values)
    assert low <= values[0] and values[-1] <= high
    expected = (values - low) / (high - low)
    assert np.abs(expected - (np.arange(len(values)) + 0.5) / len(values)).max() < 1.95 / len(values) ** 0.5


@pytest.mark.parametrize("augmentation", STRONG, ids=repr)
def test_the_rng_alone_decides(augmentation):
    image = random_image()
    before = image.tobytes()
    results = [augmentation(image, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert image.tobytes() == before
    assert all(result.mode == "RGB" and result.size == (30, 20) for result in results)
    assert results[0].tobytes() == results[1].tobytes() != before
    if not isinstance(augmentation, Grayscale):  # which has nothing to draw but whether
        assert len({result.tobytes() for result in results}) == 4


@pytest.mark.parametrize("augmentation", NEUTRAL, ids=repr)
def test_no_strength_changes_nothing(augmentation):
    rng = np.random.default_rng(0)
    assert all(augmentation(random_image(), rng).tobytes() == random_image().tobytes() for _ in range(10))


@pytest.mark.parametrize(
    "augmentation",
    [ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), Grayscale(0.2), GaussianBlur(0.5, (1.0, 2.0))],
    ids=repr,
)
def test_a_share_p_of_the_images_is_changed(augmentation):
    image, rng = random_image(4, 4), np.random.default_rng(0)
    changed = sum(augmentation(image, rng) is not image for _ in range(1000))
    # A binomial count; five of its standard deviations.
    assert abs(changed - 1000 * augmentation.p) < 5 * (1000 * augmentation.p * (1 - augmentation.p)) ** 0.5


@pytest.mark.parametrize(
    ("name", "jitter", "low", "high"),
    [
        ("brightness", ColorJitter(0.4, 0, 0, 0), 0.6, 1.4),
        ("contrast", ColorJitter(0, 0.8, 0, 0), 0.2, 1.8),
        ("saturation", ColorJitter(0, 0, 1.5, 0), 0.0, 2.5),  # torchvision's floor of 0
        ("hue", ColorJitter(0, 0, 0, 0.1), -0.1, 0.1),
    ],
)
def test_jitter_is_uniform(monkeypatch, name, jitter, low, high):
    calls, image, rng = watch(monkeypatch, name), random_image(2, 2), np.random.default_rng(0)
    for _ in range(1000):
        jitter(image, rng)
    assert_uniform([amount for _, amount in calls], low, high)


def test_jitter_comes_in_every_order(monkeypatch):
    calls = watch(monkeypatch, "brightness", "contrast", "saturation", "hue")
    image, rng = random_image(2, 2), np.random.default_rng(0)
    for _ in range(1200):
        ColorJitter(0.4, 0.4, 0.4, 0.1)(image, rng)
    orders = collections.Counter(tuple(name for name, _ in calls[start : start + 4]) for start in range(0, 4800, 4))
    # 24 orders, each a binomial count of mean 50 and deviation 7.
    assert len(calls) == 4800 and len(orders) == 24
    assert all(15 < count < 85 for count in orders.values())


def test_the_sigma_of_a_blur_is_uniform(monkeypatch):
    calls, image, rng = watch(monkeypatch, "blur"), random_image(2, 2), np.random.default_rng(0)
    for _ in range(1000):
        GaussianBlur(1.0)(image, rng)
    assert_uniform([sigma for _, sigma in calls], 0.1, 2.0)


def test_affine_draws_angle_scale_and_both_shifts_uniformly(monkeypatch):
    calls, image, rng = watch(monkeypatch, "affine"), random_image(4, 8), np.random.default_rng(0)
    for _ in range(1000):
        Affine(20, 0.1, (0.95, 1.05))(image, rng)
    _, angles, scales, shifts, fills = zip(*calls, strict=True)
    assert_uniform(np.degrees(angles), -20, 20)
    assert_uniform(scales, 0.95, 1.05)
    assert_uniform([right for right, _ in shifts], -0.8, 0.8)
    assert_uniform([down for _, down in shifts], -0.4, 0.4)
    assert set(fills) == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ColorJitter(-0.1, 0, 0, 0), "brightness=-0.1 must not be negative"),
        (lambda: ColorJitter(0, 0, float("nan"), 0), "saturation=nan must not be negative"),
        (lambda: ColorJitter(0, 0, 0, 0.6), "hue=0.6 must be from 0 to 0.5"),
        (lambda: ColorJitter(0, 0, 0, 0, p=1.1), "p=1.1 must be from 0 to 1"),
        (lambda: Grayscale(-1), "p=-1 must be from 0 to 1"),
        (lambda: GaussianBlur(2), "p=2 must be from 0 to 1"),
        (
            lambda: GaussianBlur(0.5, (0.0, 2.0)),
            r"sigma=\(0.0, 2.0\) must be two numbers of pixels with 0 < min <= max",
        ),
        (lambda: GaussianBlur(0.5, (2.0, 0.1)), r"sigma=\(2.0, 0.1\) must be"),
        (lambda: Affine(190), "degrees=190 must be from 0 to 180"),
        (lambda: Affine(0, 1.5), "translate=1.5 must be from 0 to 1"),
        (lambda: Affine(0, 0, (1.0, 0.9)), r"scale=\(1.0, 0.9\) must be two factors with 0 < min <= max"),
        (lambda: RandAugment(-1), "operations=-1 must not be negative"),
        (lambda: RandAugment(2, 11), "magnitude=11 must be from 0 to 10"),
        (lambda: RandAugment(2, 7, 1.5), "p=1.5 must be from 0 to 1"),
    ],
)
def test_an_impossible_value_is_named(build, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build()


@pytest.mark.parametrize(
    ("config", "printed"),
    [
        pytest.param(AugmentConfig(), "()", id="clip"),
        pytest.param(
            AugmentConfig(rand_augment=(2, 7)), "(RandAugment(operations=2, magnitude=7, p=0.5),)", id="albef"
        ),
        pytest.param(
            AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.1)),
            "(ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),)",
            id="virtex",
        ),
        pytest.param(
            AugmentConfig(
                affine=(20, 0.1, 0.95, 1.05),
                color_jitter=(0.4, 0.4, 0, 0),
                color_jitter_p=1.0,
                blur=1.0,
                blur_sigma=(0.1, 3.0),
            ),
            "(Affine(degrees=20, translate=0.1, scale=(0.95, 1.05)), "
            "ColorJitter(brightness=0.4, contrast=0.4, saturation=0, hue=0, p=1.0), "
            "GaussianBlur(p=1.0, sigma=(0.1, 3.0)))",
            id="convirt",
        ),
        pytest.param(
            AugmentConfig(color_jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5),
            "(ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8), "
            "Grayscale(p=0.2), GaussianBlur(p=0.5, sigma=(0.1, 2.0)))",
            id="moco-v2",
        ),
    ],
)
def test_the_recipes_of_the_literature_can_be_written(config, printed):
    assert str(from_config(config)) == printed


def test_augmentations_come_in_one_order():
    config = AugmentConfig((5, 0, 1, 1), (1, 1), 0.5, (0, 0, 0, 0.1), 0.5, 0.1, 0.1)
    kinds = [type(augmentation) for augmentation in from_config(config)]
    assert kinds == [Affine, RandAugment, ColorJitter, Grayscale, GaussianBlur]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AugmentConfig(gray=1.5), r"data.augment.gray: p=1.5 must be from 0 to 1"),
        (AugmentConfig(affine=(0, 0, 1.1, 0.9)), r"data.augment.affine: scale=\(1.1, 0.9\) must be two factors"),
        (AugmentConfig(color_jitter=(0, 0, 0, 1)), r"data.augment.color_jitter: hue=1 must be from 0 to 0.5"),
        (AugmentConfig(rand_augment=(2, 12)), r"data.augment.rand_augment: magnitude=12 must be from 0 to 10"),
    ],
)
def test_an_impossible_config_names_its_key(config, message):
    with pytest.raises(UserError, match=f"^{message}"):
        from_config(config)
