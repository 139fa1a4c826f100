"""Choice between captions of nearly the same words, in the forms of SugarCrepe and Winoground.

SugarCrepe is by Hsieh et al. 2023, Winoground by Thrush et al. 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxclip import evaluate
from jaxclip.data.record import Source
from jaxclip.data.skips import SkipLog
from jaxclip.data.sources.shapes import Shapes
from jaxclip.data.storage import resolve
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.compositional_instances import Instance, find_images, instances_of_shapes, read_instances
from jaxclip.evaluate.shown import Shown, read_back

FORMS = ("add", "replace", "swap")  # SugarCrepe's, with which the names of its kinds begin
_IMAGES = 12  # in the report


class Prepared(NamedTuple):
    """What is to be matched, and the ids of the images in `data` by their names."""

    instances: list[Instance]
    ids: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Evaluator(evaluate.Evaluator):
    """Whether images are more similar to their captions than to false ones of nearly the same words.

    Attributes:
      pairs: SugarCrepe's file `KIND.json`, a folder of them, or Winoground's `examples.jsonl`; see
        `compositional_instances.read_instances`. The images that it names are those of `data`. Empty for `shapes`,
        whose scenes of two objects give captions with their colors, sizes, places or relation swapped.
    """

    pairs: str = ""

    def prepare(self, source: Source, root: str) -> Prepared:
        """The instances, and where their images are.

        Raises:
          UserError: the file is missing or of another form, or `data` has none of its images.
        """
        if self.pairs:
            instances = read_instances(resolve(self.pairs, root))
            return Prepared(instances, find_images(source, {name for one in instances for name in one.images}))
        if not isinstance(source, Shapes):
            raise UserError("pairs is missing: give SugarCrepe's folder or Winoground's examples.jsonl")
        instances = instances_of_shapes(source)
        return Prepared(instances, {name: int(name) for one in instances for name in one.images})

    def run(
        self, encoder: Encoder, variables: Any, source: Source, skips: SkipLog, prepared: Prepared
    ) -> evaluate.Result:
        """The metrics as fractions of the instances, by CLIP_benchmark's names where it has them.

        `text_acc`: each image is more similar to its caption than to the other; Winoground's text score.
        `image_acc`: each caption is more similar to its image than to the other; Winoground's image score. Of one
          image it would always be 1, as CLIP_benchmark has it, and is left out.
        `acc`: both, Winoground's group score; of one image it is `text_acc`.
        `acc_KIND`, `acc_add`, `acc_replace`, `acc_swap`: of each kind, and means over those of each of `FORMS`.
        `mean_per_kind_acc`: the mean over the kinds.
        `tied`: instances with an image that is equally similar to both captions, as it is if the text tower's context
          is too short for what they differ by.

        Of independent random similarities, one image gives 1/2, two give 1/4, 1/4 and 1/6. Equal similarities are
        wrong, so that a collapsed model gets nothing; CLIP_benchmark takes the first caption of equal ones, which is
        the right one. Instances without one of their images are left out. The missing images are counted in `skips`.

        Raises:
          UserError: no instance has its images.
        """
        named = {name for one in prepared.instances for name in one.images}
        for name in sorted(named - prepared.ids.keys()):
            skips.add("no image of this name", name)
        embedded = encoder.source(variables, source, skips, ids=sorted(prepared.ids.values()))
        row_of = {number: row for row, number in enumerate(embedded.ids)}
        rows = {name: row_of[number] for name, number in prepared.ids.items() if number in row_of}
        instances = [one for one in prepared.instances if all(name in rows for name in one.images)]
        if not instances:
            raise UserError(f"no record can be used: {skips}")
        images = embedded.outputs[[[rows[name] for name in one.images] for one in instances]]
        texts = list(dict.fromkeys(text for one in instances for text in one.captions))
        row_of_text = {text: row for row, text in enumerate(texts)}
        captions = encoder.texts(variables, texts)[[[row_of_text[text] for text in one.captions] for one in instances]]
        # No matrix product, whose rounding may differ between equal rows.
        similarities = (images[:, :, None] * captions[:, None]).sum(-1)
        correct = scores(similarities)
        chosen = _chosen(correct["acc"], _IMAGES // similarities.shape[1])
        shown = [
            one
            for row in chosen
            for one in _shown(instances[row], similarities[row], bool(correct["acc"][row]), prepared.ids)
        ]
        tied = float((similarities[..., 0] == similarities[..., 1]).any(1).mean())
        digests = [[embedded.digests[rows[name]] for name in one.images] for one in instances]
        return dataclasses.replace(
            _result(instances, correct, tied),
            examples=read_back(encoder, source, shown),
            outcomes=correct,
            outcomes_of=evaluate.examples_digest(list(zip(digests, (one.captions for one in instances), strict=True))),
        )


def scores(similarities: Float[np.ndarray, "instances images 2"]) -> dict[str, Bool[np.ndarray, "instances"]]:
    """Which instances are right: `acc`, `text_acc` and, of two images, `image_acc`; see `Evaluator.run`.

    >>> scores(np.array([[[0.3, 0.2], [0.4, 0.5]]]))  # the first image's caption is more similar to the second image
    {'acc': array([False]), 'text_acc': array([ True]), 'image_acc': array([False])}
    """
    count = similarities.shape[1]
    own = np.stack([similarities[:, i, i] for i in range(count)], 1)
    other_text = np.stack([similarities[:, i, 1 - i] for i in range(count)], 1)
    text = np.all(own > other_text, axis=1)
    if count == 1:
        return {"acc": text, "text_acc": text}
    image = np.all(own > other_text[:, ::-1], axis=1)
    return {"acc": text & image, "text_acc": text, "image_acc": image}


def _result(
    instances: Sequence[Instance], correct: Mapping[str, Bool[np.ndarray, "instances"]], tied: float
) -> evaluate.Result:
    kinds = {kind: [one.kind == kind for one in instances] for kind in sorted({one.kind for one in instances})}
    of_kinds = _of_kinds({kind: float(correct["acc"][rows].mean()) for kind, rows in kinds.items()})
    metrics = {name: float(right.mean()) for name, right in correct.items()} | of_kinds | {"tied": tied}
    figures, count = {name: f"{metrics[name]:.1%}" for name in correct}, f"{len(instances):,}"
    if "image_acc" in correct:
        titles = {"acc": "group", "text_acc": "text", "image_acc": "image"}
        said = ", ".join(f"{title} {figures[name]}" for name, title in titles.items()) + f" of {count} instances"
        headline = figures["acc"], "images and captions matched\nchance 16.7%"
    else:
        titles = {"acc": "accuracy"}
        said = f"caption above its negative in {figures['acc']} of {count} pairs"
        forms = [f"{form} {metrics[f'acc_{form}']:.1%}" for form in FORMS if f"acc_{form}" in metrics]
        said += f" ({', '.join(forms)})" if forms else ""
        headline = figures["acc"], "caption above its negative\nchance 50%"
    said += f", {tied:.1%} equal" if tied else ""
    cells = tuple(metrics[name] for name in titles)
    tables = [evaluate.Table("Compositionality", tuple(titles.values()), {"": cells}, fractions=True)]
    if len(kinds) > 1:
        # As text, since numbers would be drawn over the steps, in a chart for each kind.
        lines: dict[str, tuple[float | int | str | None, ...]] = {
            kind or "unknown": (*(f"{correct[name][rows].mean():.1%}" for name in titles), sum(rows))
            for kind, rows in kinds.items()
        }
        tables.append(evaluate.Table("Compositionality by kind", (*titles.values(), "instances"), lines))
    return evaluate.Result(metrics=metrics, summary=said, headline=headline, tables=tuple(tables))


def _of_kinds(accuracy: Mapping[str, float]) -> dict[str, float]:
    """The metrics of several kinds and forms, by the accuracy of each kind; none of one."""
    if len(accuracy) == 1:
        return {}
    metrics = {"mean_per_kind_acc": float(np.mean(list(accuracy.values())))}
    for form in FORMS:
        values = [value for kind, value in accuracy.items() if kind.startswith(f"{form}_")]
        metrics |= {f"acc_{form}": float(np.mean(values))} if values else {}
    return metrics | {f"acc_{kind}": value for kind, value in accuracy.items() if kind}


def _chosen(right: Bool[np.ndarray, "instances"], count: int) -> list[int]:
    """Rows spread over those that are wrong and those that are right, half of each where there are as many."""
    rows: list[int] = []
    wrong = min(int((~right).sum()), max(count // 2, count - int(right.sum())))
    for of, number in ((~right, wrong), (right, count - wrong)):
        known = np.flatnonzero(of)
        places = np.linspace(0, len(known) - 1, min(number, len(known)), dtype=int)
        rows += known[places].tolist()
    return rows


def _shown(
    one: Instance, similarities: Float[np.ndarray, "images 2"], right: bool, ids: Mapping[str, int]
) -> list[Shown]:
    """The images of an instance, each with its caption, the other one, and its similarities to both."""
    found = []
    for own, name in enumerate(one.images):
        true, false = (f"{one.captions[i]} ({similarities[own, i]:.3f})" for i in (own, 1 - own))
        kind = f"{one.kind}: " if one.kind else ""
        found.append(Shown(ids[name], f"{kind}{true} — not: {false}", right))
    return found
