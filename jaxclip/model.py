"""A trained model to use: `jaxclip.load(PATH)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxclip import inputs, methods, sharding
from jaxclip.config import Config, MeshConfig, PixelsConfig
from jaxclip.data.images.crops import prepare
from jaxclip.data.images.decode import Unreadable, open_image, upright_rgb
from jaxclip.data.tokenizers import generated_text
from jaxclip.encoder import Encoder, class_embeddings, lacking, method_name
from jaxclip.errors import UserError
from jaxclip.paths import local
from jaxclip.progress import phase
from jaxclip.weights.load import open_weights
from jaxclip.weights.overrides import Answers
from jaxclip.weights.positions import at_size, read_at_size

_COMPARING = ("encode_image", "encode_text", "scale_and_bias")

ImageLike = Image.Image | np.ndarray | bytes | str | os.PathLike[str]


class Model:
    """A model with its tokenizer and image preprocessing; made by `load`.

    What it can do depends on its method: `has` tells whether it embeds images, or texts. A function that needs what the
    model does not have raises UserError.

    Attributes:
      config: of the run that trained it, a `jaxclip.config.Config`; None for weights from elsewhere.
      method: its method: towers, sizes, preprocessing.
      logit_scale: the factor of cosines before a softmax, or before the bias is added; None if the model has none.
      logit_bias: the bias of a model trained by the sigmoid loss; 0 for any other with a logit_scale, else None.
    """

    def __init__(self, config: Config | None, params: Any, stats: Any, encoder: Encoder):
        self.config = config
        self.method = encoder.method
        self.logit_scale: float | None = None
        self.logit_bias: float | None = None
        self._params = params
        self._variables = methods.joined(params, stats)
        self._encoder = encoder
        if encoder.has("scale_and_bias"):
            scale, bias = methods.bind(self.method)(self._variables).scale_and_bias()
            self.logit_scale, self.logit_bias = float(scale), float(bias)

    def __repr__(self) -> str:
        image, text = self._encoder.image, self._encoder.text
        parts = [method_name(self.method)]
        parts += [f"images of {image.size} pixels"] if image else []
        parts += [f"texts of {text.length} tokens"] if text else []
        count = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return f"<jaxclip model: {', '.join(parts)}, {count:,} parameters>"

    def has(self, *names: str) -> bool:
        """Whether the model has functions by name, such as encode_image, encode_text, features, scale_and_bias."""
        return self._encoder.has(*names)

    def preprocess(self, image: ImageLike) -> np.ndarray:
        """One image as the model takes it: uint8 [size, size, 3].

        Args:
          image: a path; a PIL image; the bytes of a file; uint8 pixels [height, width, 3], a NumPy array or what can be
            made one. It is turned upright, and transparency composited over white.

        Raises:
          UserError: it is not an image, or cannot be read; the method has no images.
        """
        wanted = self._image_input()
        try:
            if isinstance(image, Image.Image):
                opened = upright_rgb(image)
            elif isinstance(image, str | os.PathLike):
                opened = open_image(local(image, "image").read_bytes())
            elif isinstance(image, bytes):
                opened = open_image(image)
            else:
                opened = open_image(_pixels(image))
        except (Unreadable, OSError, ValueError) as error:
            name = image if isinstance(image, str | os.PathLike) else f"a {type(image).__name__}"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{name} cannot be embedded: {reason}") from None
        return prepare(opened, wanted.size, wanted.pixels)

    def tokenize(self, texts: str | Sequence[str]) -> np.ndarray:
        """Token ids, int32 [n, context]."""
        return self._encoder.tokenize(_list(texts, str))[0]

    def encode_image(self, images: ImageLike | Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Unit embeddings of any number of images, float32 [n, width].

        Args:
          images: a list of paths, PIL images and uint8 arrays [h, w, 3] in any mixture, one of these alone, or an
            array [n, h, w, 3].
        """
        return self._of_images("encode_image", images)

    def features(self, images: ImageLike | Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """The image tower's output before any projection, float32 [n, width]: for linear probes and nearest neighbors.

        Args:
          images: as `encode_image` takes them.
        """
        return self._of_images("features", images).astype(np.float32)

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Unit embeddings of any number of strings, or of one, float32 [n, width]."""
        self._check("encode_text", "encode_text")
        return self._encoder.texts(self._variables, _list(texts, str))

    def caption(
        self,
        images: ImageLike | Sequence[ImageLike] | np.ndarray,
        *,
        beams: int = 5,
        per_beam: int = 2,
        nucleus: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """A caption of each image.

        Args:
          images: as `encode_image` takes them.
          beams, per_beam: of the beam search, see `towers.generation.beam_search`.
          nucleus: if above 0, captions are drawn at random instead, from the most probable words of this share.
          seed: of the draws.

        Raises:
          UserError: the model writes no captions, or a number is out of its bounds.
        """
        self._check("caption", "caption")
        tokenizer = self._encoder.tokenizer
        assert tokenizer is not None
        how = {"beams": beams, "per_beam": per_beam, "nucleus": nucleus, "seed": seed}
        ids = {"start": tokenizer.start_id, "end": tokenizer.end_id, "words": tokenizer.vocab_size}
        found = self._of_images("caption", images, **ids, **how)
        return [generated_text(tokenizer, row) for row in found]

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """The logits of images against texts, float32 [images, texts]: scaled cosines, and the bias of a SigLIP.

        Args:
          images, texts: as `encode_image` and `encode_text` take them, or the embeddings that these gave.
        """
        self._check("similarity", *_COMPARING)
        assert self.logit_scale is not None and self.logit_bias is not None
        image = images if _is_embedded(images) else self.encode_image(images)
        text = texts if _is_embedded(texts) else self.encode_text(texts)
        image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
        return (self.logit_scale * (image @ text.T) + self.logit_bias).astype(np.float32)

    def classify(
        self, images: Any, labels: Sequence[str], templates: Sequence[str] = ("a photo of a {c}.",)
    ) -> np.ndarray:
        """How probable each label is for each image, float32 [images, labels]; the sum over labels is 1.

        Zero-shot classification (Radford et al. 2021, section 3.1.4): a label's embedding is the mean of those of its
        phrases. For a model trained by the sigmoid loss, too, the probabilities are a softmax over the labels.

        Args:
          images: as `encode_image` takes them, or embeddings that it gave.
          labels: names of the classes.
          templates: phrases with {c} for the name.

        Raises:
          UserError: no labels, or a template without {c}.
        """
        self._check("classify", *_COMPARING)
        labels, templates = _list(labels, str), _list(templates, str)
        if not labels or not templates:
            raise UserError("classify: give at least one label and one template")
        for template in templates:
            if "{c}" not in template:
                raise UserError(f"classify: the template {template!r} has no {{c}} to put the label in")
        classes = class_embeddings(self._encoder, self._variables, labels, templates)
        # The softmax does not depend on a bias that all logits share.
        logits = self.similarity(images, classes.astype(np.float32))
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponents / exponents.sum(axis=1, keepdims=True)

    def evaluation_parts(self) -> tuple[Encoder, Any]:
        """The encoder and the variables, as `jaxclip.evaluate` takes them."""
        return self._encoder, self._variables

    def _check(self, caller: str, *names: str) -> None:
        """Raises UserError if the model lacks one of these functions."""
        reason = lacking(self.method, names)
        if reason:
            raise UserError(f"{caller} {reason}")

    def _image_input(self) -> inputs.Image:
        """The images that the model takes; raises UserError if it takes none."""
        if self._encoder.image is None:
            raise UserError(f"method {method_name(self.method)} has no images")
        return self._encoder.image

    def _of_images(self, name: str, images: Any, **options: Any) -> np.ndarray:
        """A function of the model for any number of images, a batch at a time: no more than one is held decoded."""
        self._check(name, name)
        alone = getattr(images, "ndim", None) == 3
        items: list[Any] = [images] if alone else _list(images, (str, bytes, os.PathLike, Image.Image))
        size = self._encoder.batch_size
        outputs = []
        for start in range(0, max(1, len(items)), size):
            prepared = [self.preprocess(image) for image in items[start : start + size]]
            shape = (len(prepared), *(self._image_input().size,) * 2, 3)
            rows = np.asarray(prepared, np.uint8).reshape(shape)
            outputs.append(self._encoder(name, self._variables, rows, **options))
        return np.concatenate(outputs)


def _list(items: Any, single: Any) -> list[Any]:
    """Several things, or one alone, as a list."""
    return [items] if isinstance(items, single) else list(items)


def _is_embedded(items: Any) -> bool:
    """Whether this is an array of embeddings, [n, width]."""
    return getattr(items, "ndim", None) == 2 and jnp.issubdtype(np.asarray(items).dtype, np.floating)


def _pixels(image: Any) -> np.ndarray:
    """The pixels of an array of any library; raises ValueError for anything else."""
    pixels = np.asarray(image) if hasattr(image, "__array__") else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        what = "" if pixels is None else f" (this one is {pixels.dtype} {list(pixels.shape)})"
        raise ValueError(f"give a path, a PIL image, a file's bytes, or uint8 pixels [height, width, 3]{what}")
    return pixels


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
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
      path: a run's workdir, one checkpoint's folder, a Hugging Face folder of a CLIPModel or
        SiglipModel, an open_clip folder, OpenAI's or open_clip's .safetensors, or a big_vision .npz.
      step: which checkpoint of a run; None for the newest.
      image_size: pixels of the images, if not those of the training: position embeddings are resized.
      context_length: tokens of the texts, likewise.
      dtype: of the parameters. If it is bfloat16, the towers compute in it too; else in what suits the device.
      batch_size: how many images or texts are embedded at a time.
      activation, preprocess, heads, tokenizer: what public weights may not say, see `weights.overrides.Answers`; an
        error asks for what is missing.

    Raises:
      UserError: it is none of these, something in it is wrong, or something must be asked for.

    >>> model = jaxclip.load(workdir)  # of a run, such as runs/quickstart
    >>> model.encode_text(["red to the left of blue", "gold"]).shape
    (2, 16)
    >>> model.classify(np.zeros((32, 32, 3), np.uint8), ["black", "white"]).sum().round(3).item()
    1.0
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r} must be 'float32' or 'bfloat16'")
    for name, value in (("image_size", image_size), ("context_length", context_length), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}={value!r} must be a whole number, 1 at least")
    with phase(f"reading {path}"):
        weights = open_weights(path, Answers(activation, preprocess, heads, tokenizer, image_size), step=step)
        method = at_size(weights.method, image_size, context_length)
        mesh = sharding.create(MeshConfig(), jax.local_devices() if jax.process_count() == 1 else None)
        params, stats = read_at_size(weights, method, mesh, dtype)
    precision = "bfloat16" if dtype == "bfloat16" else weights.config.precision if weights.config else "auto"
    attention = weights.config.attention if weights.config else "auto"
    encoder = Encoder(method, mesh, precision, weights.tokenizer, batch_size, attention)
    return Model(weights.config, params, stats, encoder)
