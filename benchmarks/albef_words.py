"""python benchmarks/albef_words.py PATH: what a run of configs/albef_shapes.py knows of words, on held-out scenes.

Prints how often a masked color is found with the image and with a gray one, and in how many scenes of two objects
Grad-CAM points at the one that a text names ("a red circle"): the share of its tokens' mass inside its square is at
least twice the square's share of the image.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import jaxclip
from jaxclip.data.sources.shapes import SPLITS, Shapes, describe_fully, sample_scene
from jaxclip.data.sources.shapes_drawing import Figure

SPLIT = "test"
GRAY = 127


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--scenes", type=int, default=SPLITS[SPLIT])
    parser.add_argument("--pointed", type=int, default=100)
    arguments = parser.parse_args()
    encoder, variables = jaxclip.load(arguments.path, batch_size=100).evaluation_parts()
    assert encoder.tokenizer is not None and encoder.image is not None
    scenes = [sample_scene(SPLIT, number) for number in range(arguments.scenes)]
    images = np.stack([record.image for record in Shapes(SPLIT, encoder.image.size).read(range(len(scenes)))])
    captions = [describe_fully(scene)[1] for scene in scenes]
    tokens, ends = encoder.tokenize(captions)

    colors = [
        _places(encoder, caption, scene.figures[0].color) for caption, scene in zip(captions, scenes, strict=True)
    ]
    masked = tokens.copy()
    for row, places in zip(masked, colors, strict=True):
        row[places] = encoder.tokenizer.mask_id
    predict = encoder.compiled(
        "words",
        lambda model, ctx, images, tokens, end: jax.numpy.argmax(
            model.word_logits(
                model.fuse(model.image_tokens(images, ctx), model.text_states(tokens, end, ctx), end, ctx)
            ),
            axis=-1,
        ),
    )
    for name, shown in {"with the image": images, "with a gray one": np.full_like(images, GRAY)}.items():
        found = np.concatenate(
            [
                np.asarray(predict(variables, *(part[start : start + 100] for part in (shown, masked, ends))))
                for start in range(0, len(scenes), 100)
            ]
        )
        right = [(row[places] == own[places]).all() for row, own, places in zip(found, tokens, colors, strict=True)]
        print(f"masked color found {name}: {np.mean(right):.1%} of {len(right)}")

    count = min(arguments.pointed, len(scenes))
    named = [f"a {scene.figures[0].name}" for scene in scenes[:count]]
    tokens, ends = encoder.tokenize(named)
    places = encoder("word_places", variables, images[:count], tokens, ends)
    ratios = []
    for weights, scene in zip(places, scenes, strict=False):
        mass = weights.sum(axis=0)
        square = _inside(scene.figures[0], int(weights.shape[1] ** 0.5))
        ratios.append((mass * square).sum() / max(mass.sum(), 1e-12) / square.mean())
    print(f"Grad-CAM points at the object: {np.mean(np.array(ratios) >= 2):.1%} of {count} (median ratio "
          f"{np.median(ratios):.2f})")  # fmt: skip


def _places(encoder: jaxclip.encoder.Encoder, caption: str, word: str) -> list[int]:
    """The places of a word's tokens, where it occurs first."""
    before = caption[: f" {caption} ".index(f" {word} ")]
    counts = [int(encoder.tokenize([text])[1][0]) for text in (before, f"{before}{word}")]
    return list(range(*counts))


def _inside(figure: Figure, side: int) -> np.ndarray:
    """Of each patch the share that lies in the square around an object."""
    edges = np.arange(side + 1) / side

    def share(center: float) -> np.ndarray:
        low, high = center - figure.radius, center + figure.radius
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * side

    return np.outer(share(figure.y), share(figure.x)).ravel()


if __name__ == "__main__":
    main()
