"""A trained model to use: `jaxclip.load(PATH)`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxclip import checkpoint, methods
from jaxclip import mesh as meshes
from jaxclip.config import Config, MeshConfig, parse
from jaxclip.data.crops import center_crop
from jaxclip.data.images import Unreadable, open_picture
from jaxclip.data.tokenizers import Tokenizer, from_json
from jaxclip.errors import UserError
from jaxclip.evaluate.embed import Encoder

Picture = Image.Image | np.ndarray | str | os.PathLike[str]


class Model:
    """A model with its tokenizer and picture preparation; made by `load`.

    Attributes:
      config: of the run that trained it.
      logit_scale: what cosines are multiplied by before a softmax.
    """

    def __init__(self, config: Config, params: Any, tokenizer: Tokenizer, encoder: Encoder):
        self.config = config
        self.logit_scale = float(jnp.exp(params["logit_scale"]))
        self._params = params
        self._tokenizer = tokenizer
        self._encoder = encoder

    def preprocess(self, image: Picture) -> np.ndarray:
        """A path, PIL picture or uint8 array [h, w, 3] resized and centre-cropped: uint8 [size, size, 3]."""
        if isinstance(image, Image.Image):
            picture = image.convert("RGB")
        elif isinstance(image, np.ndarray):
            picture = open_picture(image)
        else:
            try:
                picture = open_picture(pathlib.Path(image).read_bytes())
            except Unreadable as error:
                raise UserError(f"{image}: {error}") from None
        return center_crop(picture, self._encoder.method.image_size)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 [n, context]."""
        return self._tokenizer(texts, self._encoder.method.context_length)[0]

    def encode_image(self, images: Sequence[Picture]) -> np.ndarray:
        """Unit embeddings of any number of pictures, float32 [n, width]."""
        _check_list(images, "pictures")
        size = self._encoder.method.image_size
        prepared = np.zeros((len(images), size, size, 3), np.uint8)
        for row, image in enumerate(images):
            prepared[row] = self.preprocess(image)
        return self._encoder.images(self._params, prepared)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings of any number of strings, float32 [n, width]."""
        _check_list(texts, "texts")
        return self._encoder.texts(self._params, list(texts))

    def evaluation_parts(self) -> tuple[Encoder, Any]:
        """The encoder and the parameters, as `jaxclip.evaluate` takes them."""
        return self._encoder, self._params


def _check_list(items: Any, what: str) -> None:
    # A string is a sequence of strings too, and would be taken letter by letter.
    if isinstance(items, str | bytes):
        raise TypeError(f"give a list of {what}, not one: [{items!r}]")


def load(path: str | os.PathLike[str], *, batch_size: int = 64) -> Model:
    """Opens the model in a run's workdir (its newest checkpoint) or in one checkpoint's folder.

    Args:
      path: the folder.
      batch_size: how many pictures or texts are embedded at a time.

    Raises:
      UserError: there is no checkpoint.
    """
    folder = checkpoint.find(pathlib.Path(path))
    saved = checkpoint.load_model(folder)
    config = parse(Config, saved["config"])
    method = methods.from_config(config.method)
    mesh = meshes.create(MeshConfig(), jax.local_devices() if jax.process_count() == 1 else None)
    abstract = jax.eval_shape(lambda: methods.init_params(method, jax.random.key(0)))
    shardings = meshes.state_shardings(mesh, abstract)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    params = checkpoint.load_params(folder, abstract)
    tokenizer = from_json(saved["tokenizer"])
    return Model(config, params, tokenizer, Encoder(method, mesh, config.precision, tokenizer, batch_size))
