"""Run configuration: frozen dataclasses whose fields are the keys of a recipe; `jaxclip.parsing` builds them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxclip.errors import UserError


def check_at_least(config: Any, minimum: float, *names: str) -> None:
    """Raises UserError naming the first of the keys whose value is below the minimum, or not a number."""
    for name in names:
        value = getattr(config, name)
        if not value >= minimum:
            must = "not be negative" if minimum == 0 else f"be at least {minimum}"
            raise UserError(f"{name}={value} must {must}")


def check_shares(config: Any, *names: str) -> None:
    """Raises UserError naming the first of the keys whose value is not from 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 0 and at most 1")


def check_pattern(config: Any, name: str) -> None:
    """Raises UserError if the key's value is not a regular expression."""
    try:
        re.compile(getattr(config, name))
    except re.error as error:
        raise UserError(f"{name}={getattr(config, name)!r} is not a regular expression: {error}") from None


def check_templates(name: str, templates: tuple[str, ...]) -> None:
    """Raises UserError naming the key if a phrase has no `{c}` to put a text in."""
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"{name}: {template!r} has no {{c}} to put the text in")


AttentionForm = Literal["auto", "plain", "kernel"]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentations of training images after crop and flip, applied in this order; see `data.images.augment`.

    Attributes:
      affine: the maximum rotation in degrees, the maximum shift as a share of the side, the minimum and the maximum
        scale.
      rand_augment: RandAugment without color operations: the number of operations and their magnitude, 0 to 10.
      rand_augment_p: the probability of each of these operations.
      color_jitter: the maximum changes of brightness, contrast, saturation and hue.
      color_jitter_p: the probability of color jitter.
      gray: the probability of conversion to grayscale.
      blur: the probability of a Gaussian blur.
      blur_sigma: the minimum and maximum standard deviation of the blur, in pixels.
    """

    affine: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    rand_augment: tuple[int, int] = (0, 0)
    rand_augment_p: float = 0.5
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_p: float = 0.8
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)


@dataclasses.dataclass(frozen=True)
class PixelsConfig:
    """Image preprocessing. Part of the model: weights are valid only with the preprocessing they were trained with.

    Attributes:
      mean, std: the mean and standard deviation of the red, green and blue channels, in [0, 1], by which pixels are
        normalized; CLIP's by default (OpenAI's clip/clip.py).
      resize: at evaluation: "crop" resizes the short side to the model's size and crops the center (CLIP); "squash"
        resizes both sides to the model's size whatever the aspect ratio (SigLIP).
      interpolation: the interpolation at evaluation, antialiased.
    """

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self):
        if not all(value > 0 for value in self.std):
            raise UserError(f"std={self.std} must be above 0")


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """A view of an image in training, for methods with several views per image.

    Attributes:
      crop_scale, flip, augment: as in `DataConfig`.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self):
        _check_crop_scale(self.crop_scale)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training and validation data; see `data.sources.open_source` for the text forms of a source.

    Attributes:
      train: the training source, or a mixture: as text ("0.7 * A + 0.3 * B"), or as a list of (source, weight).
      eval: the source of the validation loss and of the report's images; empty for none.
      root: the folder that relative paths (of data, vocabulary and classes) start from.
      vocabulary: path of a published vocabulary; empty if one is trained.
      train_vocabulary: size of the vocabulary to train from the run's own captions; 0 to use `vocabulary`.
      vocabulary_form: the form of the vocabulary that `train_vocabulary` trains: "clip" for CLIP's byte-level BPE;
        "sentencepiece" for VirTex's BPE, which has a token for masked ones.
      clean: how texts are cleaned before a published vocabulary divides them, in training and whenever the model is
        used: "" for the vocabulary's own way; "albef" for lower case without punctuation.
      caption_templates: phrases with a `{c}` that captions are wrapped in at random in training; empty for none.
      shuffle_window: the number of records that are shuffled with each other if the order of storage matters (remote
        files, Parquet); otherwise all records are shuffled.
      max_pixels: images with more pixels according to their header are skipped in training (in evaluation: 64 million).
      max_skip_rate: the share of unusable records above which training stops; see docs/data.md.
      crop_scale: the minimum and maximum share of an image's area that a training crop covers.
      flip: mirror training images with probability 1/2, and exchange "left" and "right" in their texts.
      augment: further augmentations in training.
      views: by name, the views that the method's inputs require besides the default one, which is `crop_scale`, `flip`
        and `augment` above.
      augment_on_device: apply color jitter, gray and blur, and the flip of `views`, on the devices. The random draws
        differ from those on the CPU.
      captions: the caption or question of an image used in training: "random" for any of them; "first"; "all" for each
        in turn, one per epoch; "sentence" for one sentence of any of the captions.
      drop_words: the probability that a word of a caption is left out in training.
    """

    train: str | tuple[tuple[str, float], ...]
    eval: str = ""
    root: str = ""
    vocabulary: str = ""
    train_vocabulary: int = 0
    vocabulary_form: Literal["clip", "sentencepiece"] = "clip"
    clean: Literal["", "albef"] = ""
    caption_templates: tuple[str, ...] = ()
    shuffle_window: int = 4096
    max_pixels: int = 64_000_000
    max_skip_rate: float = 0.1
    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: bool = False
    augment: AugmentConfig = AugmentConfig()
    views: Mapping[str, ViewConfig] = dataclasses.field(default_factory=dict)
    augment_on_device: bool = False
    captions: Literal["random", "first", "all", "sentence"] = "random"
    drop_words: float = 0.0

    def __post_init__(self):
        _check_crop_scale(self.crop_scale)
        check_at_least(self, 0, "train_vocabulary", "max_skip_rate")
        check_at_least(self, 1, "shuffle_window", "max_pixels")
        if not 0 <= self.drop_words < 1:
            raise UserError(f"drop_words={self.drop_words} must be at least 0 and below 1")
        if self.vocabulary and self.train_vocabulary:
            raise UserError(
                f"vocabulary={self.vocabulary!r}: give data.vocabulary=PATH or data.train_vocabulary=SIZE, not both"
            )
        check_templates("caption_templates", self.caption_templates)


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """A rule for some of the parameters; `optimizer.groups` holds them in order, and the first that matches applies.

    Attributes:
      match: a regular expression, searched for in the parameters' paths, such as image/positions.
      rate: a factor on the learning rate. 0 freezes: the parameters have no gradient and no optimizer state, and the
        batch statistics of their layers stay as they are.
      weight_decay: the group's weight decay; a negative value stands for the optimizer's own.
      decay_all: whether gains and biases are decayed too.
      layer_decay: in stacked blocks [layers, ...], a further factor of layer_decay ** (layers - 1 - l) on the learning
        rate of layer l, counted from 0.
    """

    match: str
    rate: float = 1.0
    weight_decay: float = -1.0
    decay_all: bool = False
    layer_decay: float = 1.0

    def __post_init__(self):
        check_pattern(self, "match")
        check_at_least(self, 0, "rate")
        if math.isnan(self.weight_decay):
            raise UserError("weight_decay=nan must be a number; a negative one stands for the optimizer's own")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay} must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; the defaults are CLIP's (Radford et al. 2021, table 18 and 19).

    Attributes:
      learning_rate: the peak, reached after `warmup_steps` of linear growth; `schedule` defines the rate after that.
      warmup_steps: at most a tenth of the run's steps are used.
      name: "adamw", with decoupled decay; "adam", whose decay is added to the gradient; "sgd" with momentum, likewise;
        "muon" for matrices, with AdamW for all else.
      beta1: decay of the mean gradient; the momentum of "sgd" and "muon".
      beta2, eps: of Adam.
      weight_decay: of all parameters but gains and biases.
      clip_norm: the global norm that gradients are clipped to; 0 for no clipping.
      schedule: the name of a class in `jaxclip.schedule`, and its keys.
      groups: parameters with a learning rate or a decay of their own, or that are frozen.
      lookahead: (every, step size): every so many steps, the slow weights move by the share `step size` towards the
        weights, which are then set to them (Zhang et al. 2019); (0, 0.0) for none.
      average_decay: the decay of an exponential moving average of the weights, which is then evaluated and exported
        instead of them; 0 for none, 0.9999 is typical.
    """

    learning_rate: float
    warmup_steps: int = 2000
    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    clip_norm: float = 0.0
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "cosine"})
    groups: tuple[GroupConfig, ...] = ()
    lookahead: tuple[int, float] = (0, 0.0)
    average_decay: float = 0.0

    def __post_init__(self):
        check_at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "clip_norm")
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not self.eps > 0:
            raise UserError(f"eps={self.eps} must be above 0")
        every, size = self.lookahead
        if self.lookahead != (0, 0.0) and not (every >= 1 and 0 < size <= 1):
            raise UserError(f"lookahead={self.lookahead} must be (steps, a share above 0 and at most 1), or (0, 0.0)")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices: each group of `fsdp` shards one copy of the parameters; `data` groups (-1: all devices)."""

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run.

    Attributes:
      seed: the seed of initialization, data order and augmentation.
      steps: length of the run; 0 to use `epochs`.
      epochs: passes over the training data, used if `steps` is 0.
      batch_size: pairs per step over all devices.
      microbatches: the number of parts of a batch that pass through the towers one after the other, to save memory; the
        loss and the gradient remain those of the whole batch (gradient caching).
      precision: the dtype of the towers' computations: "auto" is bfloat16 on TPU and GPU and float32 on CPU.
      attention: the form of the towers' self-attention: "auto" is one kernel per row of tokens on TPUs ("kernel", for
        heads of width 64) and cuDNN's on GPUs; "plain" is the compiler's own everywhere. Off TPUs "kernel" is
        interpreted, which is slow.
      log_every, eval_every, checkpoint_every: in steps; 0 for only at the end.
      keep_checkpoints: the number of latest checkpoints kept on disk.
      on_nonfinite: when a loss, a gradient or the updated state is not finite: "stop" ends the run; "rewind" goes back
        to the newest checkpoint and on with the data behind the step, three times at most from one checkpoint.
      profile_steps: first and last step of a profiler trace; (0, 0) for none.
      init_from: initial weights: a run's workdir, a checkpoint, or weights that `jaxclip.load` opens; "A + B" for
        weights of single towers, which each give theirs; empty for random initialization.
      init_only: a regular expression; only parameters whose path it is found in ("^image") are initialized from
        `init_from`.
      method: the method's own keys and its `name`, the module's name in `jaxclip.methods`.
      keep_best: a metric such as "validation_loss", whose best checkpoint so far is kept beside the latest ones; with a
        minus before the name if a higher value is better; empty for none.
      evals: evaluations by name: the `task`, a module's name in `jaxclip.evaluate`, and that task's own keys; if empty,
        the method's `task` on `data.eval`.
    """

    seed: int
    steps: int
    batch_size: int
    data: DataConfig
    method: Mapping[str, Any]
    optimizer: OptimizerConfig
    epochs: float = 0.0
    microbatches: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: AttentionForm = "auto"
    log_every: int = 50
    eval_every: int = 2000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    keep_best: str = ""
    on_nonfinite: Literal["stop", "rewind"] = "stop"
    profile_steps: tuple[int, int] = (0, 0)
    init_from: str = ""
    init_only: str = ""
    mesh: MeshConfig = MeshConfig()
    evals: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_at_least(self, 1, "batch_size", "microbatches", "log_every", "keep_checkpoints")
        check_at_least(self, 0, "steps", "epochs", "eval_every", "checkpoint_every", "seed")
        check_pattern(self, "init_only")
        if self.seed >= 1 << 32:
            raise UserError(f"seed={self.seed} must be below 2^32")
        if not self.steps and not self.epochs:
            raise UserError("steps=0: give steps, or epochs with steps=0")

    def evaluations(self, task: str) -> Mapping[str, Mapping[str, Any]]:
        """The evaluations to run: `evals`, or if it is empty, one task on `data.eval`.

        Args:
          task: the method's `jaxclip.methods.Method.task`; empty for none.
        """
        if self.evals or not self.data.eval or not task:
            return self.evals
        return {"validation": {"task": task, "data": self.data.eval}}


def _check_crop_scale(crop_scale: tuple[float, float]) -> None:
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"crop_scale={crop_scale} must be two shares of the area, 0 < from <= to <= 1")
