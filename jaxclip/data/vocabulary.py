"""Tokenizer of a recipe: the one a run saved, a published vocabulary, or one trained on the captions and questions."""

from __future__ import annotations

from collections.abc import Sequence

from jaxclip.config import DataConfig
from jaxclip.data import storage, tokenizers
from jaxclip.data.captions import wrap
from jaxclip.data.mixture import spread
from jaxclip.data.record import Record, Source
from jaxclip.data.tokenizers import Tokenizer, virtex
from jaxclip.errors import UserError
from jaxclip.inputs import Answers, Inputs, Text

_CHUNK = 256  # records read at a time


def tokenizer_of(inputs: Inputs, config: DataConfig, source: Source, saved: str | None = None) -> Tokenizer | None:
    """The tokenizer of a method's texts.

    Args:
      inputs: of the method.
      config: names a vocabulary, or the size and the form of one to train.
      source: the training data, whose captions a vocabulary is trained on, and whose questions and answers if the
        method has such inputs.
      saved: the content of a run's tokenizer.json, which is taken instead.

    Returns:
      The tokenizer; None if the method has no texts.

    Raises:
      UserError: the config gives neither a vocabulary nor a size, or none of this size can be trained.
    """
    texts = [kind for kind in inputs.values() if isinstance(kind, Text | Answers)]
    if not texts:
        return None
    if saved is not None:
        return tokenizers.from_json(saved)
    if config.vocabulary:
        return tokenizers.load(storage.resolve(config.vocabulary, config.root), clean=config.clean or None)
    if config.clean:
        raise UserError(f"config.data.clean={config.clean!r} is for a published vocabulary; give data.vocabulary=PATH")
    if config.train_vocabulary:
        train = virtex.train if config.vocabulary_form == "sentencepiece" else tokenizers.train
        questions = any(isinstance(kind, Answers) or kind.field == "question" for kind in texts)
        return train(caption_sample(source, config.caption_templates, questions=questions), config.train_vocabulary)
    raise UserError(
        "config.data.vocabulary is empty: give data.vocabulary=PATH (OpenAI's bpe_simple_vocab_16e6.txt.gz is in "
        "the folder clip/ of github.com/openai/CLIP) or data.train_vocabulary=SIZE to train one from the captions"
    )


def caption_sample(
    source: Source, templates: Sequence[str], limit: int = 8192, *, questions: bool = False
) -> list[str]:
    """Captions of up to `limit` records spread over a source, as training sees them, to train a vocabulary from.

    Each caption comes in every template: a vocabulary of bare class names would spell the words around them out, letter
    by letter, and the class would fall behind the end of the context.

    Args:
      source: the records.
      templates: of captions.
      limit: the most records.
      questions: whether their questions and answers come along, each as it is.
    """
    ids = spread(source, limit)
    texts: list[str] = []
    for start in range(0, len(ids), _CHUNK):
        for record in source.read(ids[start : start + _CHUNK]):
            if isinstance(record, Record):
                texts.extend(
                    wrap(caption, template) for caption in record.captions for template in templates or ("{c}",)
                )
                for question in record.questions if questions else ():
                    texts += [question.text, *(answer for answer, _ in question.answers)]
    return texts
