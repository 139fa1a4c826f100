"""Records as the inputs of a method: images cropped and augmented, texts chosen, for training and for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxclip import inputs
from jaxclip.config import AugmentConfig, DataConfig, ViewConfig
from jaxclip.data import captions, order
from jaxclip.data.images.augment import Augmentation, from_config
from jaxclip.data.images.crops import Crops, prepare, random_box
from jaxclip.data.images.decode import Unreadable, open_image
from jaxclip.data.record import Question, Record, Skip, caption_lines
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.errors import UserError
from jaxclip.inputs import Inputs

_EVALUATION = 0x5EED  # seed of the views that evaluations augment, the same for every run
_QUESTION = 0xA5C  # number of the randomness that chooses a record's question; those of images are small


@dataclasses.dataclass(frozen=True)
class _View:
    """Where an image is cropped, and what is done to it afterwards."""

    crop_scale: tuple[float, float]
    flip: bool
    augmentations: tuple[Augmentation, ...]


class Views:
    """Makes records into the rows of a batch.

    Args:
      method_inputs: as `Method.inputs` gives them.
      config: the augmentation, by view, and how captions and questions are chosen.
      tokenizer: of the texts; None for a method without any.

    Raises:
      UserError: an input names a view that the config does not have, or an augmentation is impossible.
    """

    def __init__(self, method_inputs: Inputs, config: DataConfig, tokenizer: Tokenizer | None):
        self.inputs = method_inputs
        self._config = config
        self._tokenizer = tokenizer
        self._images = {name: kind for name, kind in method_inputs.items() if isinstance(kind, inputs.Image)}
        self._training = {name: self._view(kind.view, config.augment_on_device) for name, kind in self._images.items()}
        self._evaluation = {name: self._view(kind.view, False) for name, kind in self._images.items() if kind.view}

    def _view(self, name: str, on_device: bool) -> _View:
        if name and name not in self._config.views:
            raise UserError(f"config.data.views.{name} is missing: the method asks for an image of that view")
        view: DataConfig | ViewConfig = self._config.views[name] if name else self._config
        augment = view.augment
        if on_device:
            # The others are left to `device_augmentation`.
            augment = AugmentConfig(augment.affine, augment.rand_augment, augment.rand_augment_p)
        where = f"data.views.{name}.augment" if name else "data.augment"
        # The mirror image of the data's own view goes with a change of the caption, so it is made here in any case.
        return _View(view.crop_scale, view.flip and not (on_device and name), from_config(augment, where))

    def training(self, record: Record, key: int, epoch: int, record_id: int) -> dict[str, Any] | Skip:
        """The inputs of one record, augmented; texts as strings, to be tokenized by `batch`.

        Args:
          record: as the source gives it.
          key: its randomness in this epoch, one of `order.record_keys`.
          epoch: of the record.
          record_id: its number in the source.

        Returns:
          The inputs by name, or why the record cannot be used.
        """
        config, rng = self._config, order.record_rng(key)
        question = None
        if questions := self._questions(record):
            # The choice has its own randomness, so that crops and captions are those of a method without questions.
            question = captions.one_of(questions, _rng(key, _QUESTION), config.captions, epoch, record_id)
        values = self._fields(record, record_id, question)
        if isinstance(values, Skip):
            return values
        texts = {
            name for name, kind in self.inputs.items() if isinstance(kind, inputs.Text) and kind.field == "caption"
        }
        rngs = {name: rng if not number else _rng(key, number) for number, name in enumerate(self._images)}
        try:
            images = self._crop(record, self._training, rngs, config.max_pixels)
        except Unreadable as error:
            return Skip(str(error), record.key)
        caption = ""
        if texts:
            caption = captions.choose(record.captions, config.caption_templates, rng, config.captions, epoch, record_id)
            if config.drop_words:
                caption = captions.drop_words(caption, config.drop_words, rng)
        if config.flip and rng.random() < 0.5:
            caption = captions.swap_sides(caption)
            values |= self._swapped(values)
            images |= self._mirrored(images)
        values |= dict.fromkeys(texts, caption)
        return values | {name: self._augment(name, image, rngs[name]) for name, image in images.items()}

    def _swapped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The question and its answers for the mirrored images."""
        swapped: dict[str, Any] = {}
        for name, kind in self.inputs.items():
            match kind:
                case inputs.Text(field="question"):
                    swapped[name] = captions.swap_sides(values[name])
                case inputs.Answers():
                    swapped[name] = [(captions.swap_sides(text), weight) for text, weight in values[name]]
        return swapped

    def _mirrored(self, images: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
        """The mirrored images of the data's own view.

        Several images of a record are side by side, as a statement of NLVR2 on "the left image" sees them: in the
        mirror, they change places. Images of different sizes cannot.
        """
        own = [name for name, kind in self._images.items() if not kind.view]
        mirrored = [images[name].transpose(Image.Transpose.FLIP_LEFT_RIGHT) for name in own]
        numbers = [self._images[name].number for name in own]
        if numbers == list(range(len(own))) and len({image.size for image in mirrored}) == 1:
            mirrored.reverse()
        return dict(zip(own, mirrored, strict=True))

    def _augment(self, name: str, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        view = self._training[name]
        if self._images[name].view and view.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for change in view.augmentations:
            image = change(image, rng)
        return np.asarray(image)

    def evaluation(self, record: Record, record_id: int) -> dict[str, Any] | Skip:
        """The inputs of one record without chance: the first caption and question, the evaluation crop.

        A view of its own name is augmented as in training, in the same way at every evaluation: a loss between views
        means nothing if they are all the same.
        """
        questions = self._questions(record)
        values = self._fields(record, record_id, questions[0] if questions else None)
        if isinstance(values, Skip):
            return values
        key = int(order.record_keys(_EVALUATION, 0, record_id))
        rngs = {name: _rng(key, number) for number, name in enumerate(self._images)}
        try:
            images = self._crop(record, self._evaluation, rngs, self._config.max_pixels)
            for name, kind in self._images.items():
                if name in images:
                    image = images[name]
                    for change in self._evaluation[name].augmentations:
                        image = change(image, rngs[name])
                    values[name] = np.asarray(image)
                else:
                    values[name] = prepare(open_image(_image(record, kind.number)), kind.size, kind.pixels)
        except Unreadable as error:
            return Skip(str(error), record.key)
        for name, input_kind in self.inputs.items():
            if isinstance(input_kind, inputs.Text) and input_kind.field == "caption":
                values[name] = caption_lines(record.captions)[0]
        return values

    def _questions(self, record: Record) -> Sequence[Question]:
        """The questions of a record among which one is chosen: those with answers or labels if the method takes these.

        If none has what the method takes, all of them.
        """
        questions: Sequence[Question] = record.questions
        for kind in self.inputs.values():
            match kind:
                case inputs.Answers():
                    questions = [question for question in questions if question.answers] or questions
                case inputs.Label():
                    questions = [question for question in questions if question.label is not None] or questions
        return questions

    def _fields(self, record: Record, record_id: int, question: Question | None) -> dict[str, Any] | Skip:
        """What a record has besides images and captions, or what it lacks."""
        values: dict[str, Any] = {}
        for name, kind in self.inputs.items():
            match kind:
                case inputs.Image(number=number) if number > len(record.more_images):
                    return Skip("no further image", record.key)
                case inputs.Text(field="caption") if not caption_lines(record.captions):
                    return Skip("no caption", record.key)
                case inputs.Text(field="question"):
                    if question is None:
                        return Skip("no question", record.key)
                    values[name] = question.text
                case inputs.Answers(count=count):
                    if question is None or not question.answers:
                        return Skip("no answer", record.key)
                    values[name] = sorted(question.answers, key=lambda answer: -answer[1])[:count]
                case inputs.Tags(count=count):
                    if record.tags is None:
                        return Skip("no tags", record.key)
                    tags = [tag for tag in record.tags if 0 <= tag < count]
                    values[name] = np.zeros(count, np.float32)
                    values[name][tags] = 1
                case inputs.Label():
                    label = record.label if question is None or question.label is None else question.label
                    values[name] = np.int32(-1 if label is None else label)
                case inputs.RecordId():
                    values[name] = np.int32(record_id)
        return values

    def _crop(
        self, record: Record, views: Mapping[str, _View], rngs: Mapping[str, np.random.Generator], max_pixels: int
    ) -> dict[str, Image.Image]:
        """A random crop for each view. An image that several views show is decoded once."""
        crops: dict[str, Image.Image] = {}
        for number in sorted({self._images[name].number for name in views}):
            image = Crops(_image(record, number), max_pixels)
            names = [name for name in views if self._images[name].number == number]
            squares = [
                (random_box(*image.size, rngs[name], views[name].crop_scale), self._images[name].size) for name in names
            ]
            crops |= zip(names, image.cut(squares), strict=True)
        return crops

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of a batch, their shapes those of `inputs.shapes`."""
        arrays: dict[str, np.ndarray] = {}
        for name, kind in self.inputs.items():
            values = [row[name] for row in rows]
            match kind:
                case inputs.Text(length=length):
                    arrays[name], arrays[f"{name}_end"] = self._tokenize(values, length)
                case inputs.Answers(length=length, count=count):
                    answers = [answer for value in values for answer in (*value, *[("", 0.0)] * (count - len(value)))]
                    tokens, ends = self._tokenize([text for text, _ in answers], length)
                    arrays[name] = tokens.reshape(len(rows), count, length)
                    arrays[f"{name}_end"] = ends.reshape(len(rows), count)
                    weights = np.array([weight for _, weight in answers], np.float32)
                    arrays[f"{name}_weight"] = weights.reshape(len(rows), count)
                case _:
                    arrays[name] = np.stack(values)
        return arrays

    def _tokenize(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        if self._tokenizer is None:
            raise ValueError("a method with texts needs a tokenizer")
        return self._tokenizer(texts, length)


def _rng(key: int, number: int) -> np.random.Generator:
    """The randomness of one input of a record."""
    return order.record_rng(int(order.hash_ints(key, number)))


def _image(record: Record, number: int) -> bytes | np.ndarray:
    return record.image if number == 0 else record.more_images[number - 1]
