"""A trained model to use: `jaxclip.load(PATH)`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxclip import methods, sharding
from jaxclip.config import Config, MeshConfig, PixelsConfig
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import Unreadable, open_image, upright_rgb
from jaxclip.encoder import Encoder, class_embeddings
from jaxclip.errors import UserError
from jaxclip.weights.load import open_weights
from jaxclip.weights.overrides import Answers
from jaxclip.weights.positions import at_size, read_at_size

Picture = Image.Image | np.ndarray | bytes | str | os.PathLike[str]


class Model:
    """A model with its tokenizer and picture preparation; made by `load`.

    Attributes:
      config: of the run that trained it, a `jaxclip.config.Config`; None for weights from elsewhere.
      method: what it is: towers, sizes, preprocessing.
      logit_scale: what cosines are multiplied by before a softmax, or before the bias is added.
      logit_bias: what is added then by a model trained by the sigmoid loss; 0 for any other.
    """

    def __init__(self, config: Config | None, params: Any, stats: Any, encoder: Encoder):
        self.config = config
        self.method = encoder.method
        self.logit_scale = float(jnp.exp(params["logit_scale"]))
        self.logit_bias = float(params.get("logit_bias", 0.0))
        self._params = params
        self._variables = methods.joined(params, stats)
        self._encoder = encoder

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        method = self.method
        return (
            f"<jaxclip model: {method.image.name} at {method.image_size} pixels, {method.text.name} of "
            f"{method.context_length} tokens, {method.embed_dim} dimensions, {count:,} parameters>"
        )

    def preprocess(self, image: Picture) -> np.ndarray:
        """One picture as the model is shown it: uint8 [size, size, 3].

        Args:
          image: a path; a PIL picture; the bytes of a file; uint8 pixels [height, width, 3], a NumPy array or what can
            be made one. It is turned upright, and transparency composited over white.

        Raises:
          UserError: it is no picture, or cannot be read.
        """
        try:
            if isinstance(image, Image.Image):
                picture = upright_rgb(image)
            elif isinstance(image, str | os.PathLike):
                picture = open_image(pathlib.Path(image).expanduser().read_bytes())
            elif isinstance(image, bytes):
                picture = open_image(image)
            else:
                picture = open_image(_pixels(image))
        except (Unreadable, OSError, ValueError) as error:
            name = image if isinstance(image, str | os.PathLike) else f"a {type(image).__name__}"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{name} cannot be embedded: {reason}") from None
        return prepare(picture, self.method.image_size, self.method.pixels)

    def tokenize(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids, int32 [n, context]."""
        return self._encoder.tokenizer(_list(texts, str), self.method.context_length)[0]

    def encode_image(self, images: Picture | Sequence[Picture] | np.ndarray) -> np.ndarray:
        """Unit embeddings of any number of pictures, float32 [n, width].

        Args:
          images: a list of paths, PIL pictures and uint8 arrays [h, w, 3] in any mixture, one of these alone, or an
            array [n, h, w, 3].
        """
        alone = getattr(images, "ndim", None) == 3
        pictures: list[Any] = [images] if alone else _list(images, (str, bytes, os.PathLike, Image.Image))
        size = self._encoder.batch_size
        outputs = []
        # A batch at a time, so that any number of files takes the memory of one batch.
        for start in range(0, max(1, len(pictures)), size):
            prepared = [self.preprocess(image) for image in pictures[start : start + size]]
            shape = (len(prepared), self.method.image_size, self.method.image_size, 3)
            outputs.append(self._encoder.images(self._variables, np.asarray(prepared, np.uint8).reshape(shape)))
        return np.concatenate(outputs)

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit embeddings of any number of strings, or of one, float32 [n, width]."""
        return self._encoder.texts(self._variables, _list(texts, str))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """The logits of pictures against texts, float32 [pictures, texts]: scaled cosines, and the bias of a SigLIP.

        Args:
          images, texts: as `encode_image` and `encode_text` take them, or the embeddings that these gave.
        """
        image = images if _is_embedded(images) else self.encode_image(images)
        text = texts if _is_embedded(texts) else self.encode_text(texts)
        image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
        return (self.logit_scale * (image @ text.T) + self.logit_bias).astype(np.float32)

    def classify(
        self, images: Any, labels: Sequence[str], templates: Sequence[str] = ("a photo of a {c}.",)
    ) -> np.ndarray:
        """How probable each label is for each picture, float32 [pictures, labels]; the sum over labels is 1.

        Zero-shot classification (Radford et al. 2021, section 3.1.4): a label's embedding is the mean of those of its
        phrases. Of a model trained by the sigmoid loss, too, the probabilities are a softmax over the labels.

        Args:
          images: as `encode_image` takes them, or embeddings that it gave.
          labels: names of the classes.
          templates: phrases with {c} where the name goes.

        Raises:
          UserError: no labels, or a template without {c}.
        """
        labels, templates = _list(labels, str), _list(templates, str)
        if not labels or not templates:
            raise UserError("classify: give at least one label and one template")
        for template in templates:
            if "{c}" not in template:
                raise UserError(f"classify: the template {template!r} has no {{c}} to put the label in")
        classes = class_embeddings(self._encoder, self._variables, labels, templates)
        logits = self.similarity(images, classes.astype(np.float32)) - self.logit_bias
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    def evaluation_parts(self) -> tuple[Encoder, Any]:
        """The encoder and the variables, as `jaxclip.evaluate` takes them."""
        return self._encoder, self._variables


def _list(items: Any, single: Any) -> list[Any]:
    """Several things, or one alone, as a list."""
    return [items] if isinstance(items, single) else list(items)


def _is_embedded(items: Any) -> bool:
    """Whether this is an array of embeddings, [n, width]."""
    return getattr(items, "ndim", None) == 2 and jnp.issubdtype(np.asarray(items).dtype, np.floating)


def _pixels(image: Any) -> np.ndarray:
    """The pixels that an array of any library holds; raises ValueError for anything else."""
    pixels = np.asarray(image) if hasattr(image, "__array__") else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        what = "" if pixels is None else f" (this one is {pixels.dtype} {list(pixels.shape)})"
        raise ValueError(f"give a path, a PIL picture, a file's bytes, or uint8 pixels [height, width, 3]{what}")
    return pixels


def load(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 64,
    activation: str | None = None,
    preprocess: str | PixelsConfig | None = None,
    heads: int | str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Model:
    """Opens a model: a run of ours, or public weights.

    Args:
      path: a run's workdir (its newest checkpoint), one checkpoint's folder, a Hugging Face folder of a CLIPModel or
        SiglipModel, an open_clip folder, OpenAI's or open_clip's .safetensors, or a big_vision .npz.
      image_size: pixels of the pictures, where they are to be others than in training: position embeddings are resized.
      context_length: tokens of the texts, likewise.
      dtype: of the parameters. The towers compute in bfloat16 if it is, else in what suits the device.
      batch_size: how many pictures or texts are embedded at a time.
      activation, preprocess, heads, tokenizer: what public weights may not say, see `weights.answers.Answers`; an error
        asks for what is missing.

    Raises:
      UserError: it is none of these, something in it is wrong, or something must be asked for.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r} must be 'float32' or 'bfloat16'")
    for name, value in (("image_size", image_size), ("context_length", context_length), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}={value!r} must be a whole number, 1 at least")
    weights = open_weights(path, Answers(activation, preprocess, heads, tokenizer, image_size))
    method = at_size(weights.method, image_size, context_length)
    mesh = sharding.create(MeshConfig(), jax.local_devices() if jax.process_count() == 1 else None)
    params, stats = read_at_size(weights, method, mesh, dtype)
    precision = "bfloat16" if dtype == "bfloat16" else weights.config.precision if weights.config else "auto"
    assert weights.tokenizer is not None
    encoder = Encoder(method, mesh, precision, weights.tokenizer, batch_size)
    return Model(weights.config, params, stats, encoder)
