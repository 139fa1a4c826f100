"""Linear probe that starts as the zero-shot classifier (Li et al. 2022, ELEVATER, section 3.3)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jaxclip.config import check_templates
from jaxclip.data.record import Source
from jaxclip.encoder import Encoder, class_embeddings
from jaxclip.evaluate import linear_probe
from jaxclip.evaluate.on_features import Further
from jaxclip.evaluate.prompts.choice import choose
from jaxclip.evaluate.zeroshot_classification import logit_scale


@dataclasses.dataclass(frozen=True)
class Evaluator(linear_probe.Evaluator):
    """How far labeled images take a model beyond its zero-shot classification.

    As `linear_probe`, but on the embeddings of images in the shared space, and with a regularizer that pulls the
    weights to those of the zero-shot classifier, the embeddings of the class names at the model's temperature, and not
    to 0; there is no intercept. A stronger regularizer gives that classifier in the limit, so that few images do not
    make it worse. (Logistic regression is convex: a start alone would be forgotten.)

    Attributes:
      classes, templates, prompts: as of `zeroshot_classification`.
    """

    needs: ClassVar[tuple[str, ...]] = ("encode_image", "encode_text")
    function: ClassVar[str] = "encode_image"

    classes: str = ""
    templates: tuple[str, ...] = ()
    prompts: str = ""

    def __post_init__(self):
        super().__post_init__()
        check_templates("templates", self.templates)

    def prepare(self, source: Source, root: str) -> Further:
        """The further sources and the prompts.

        Raises:
          UserError: one cannot be read or used, or has other classes than `data`; the names are not known.
        """
        prompts = choose(self.data, source.class_names, root, self.classes, self.templates, self.prompts)
        return super().prepare(source, root)._replace(class_names=prompts.classes, prompts=prompts)

    def prior(self, encoder: Encoder, variables: Any, prepared: Further) -> Float[np.ndarray, "width classes"]:
        """The weights of the zero-shot classifier."""
        assert prepared.prompts is not None
        texts = class_embeddings(encoder, variables, prepared.prompts.classes, prepared.prompts.templates)
        return logit_scale(encoder, variables) * texts.T
