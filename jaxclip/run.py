"""The parts of a training run, built from its config in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from jaxclip import evaluate, inputs, methods, optimizer, schedule, sharding
from jaxclip.config import Config, DataConfig
from jaxclip.data import findings, loader, mixture, skips, sources, vocabulary
from jaxclip.data.record import Source
from jaxclip.data.tokenizers import Tokenizer
from jaxclip.data.views import Views
from jaxclip.device_augmentation import augmentation
from jaxclip.encoder import Encoder
from jaxclip.errors import UserError
from jaxclip.evaluate.validation import Validation
from jaxclip.io import atomic_write
from jaxclip.parsing import to_dict
from jaxclip.step import Step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of; nothing is written yet.

    Attributes:
      config, workdir: as given.
      method, mesh: of the config.
      source: what is trained on.
      validation: the validation loss, with the source of the report's images; None for none.
      evaluations: opened.
      tokenizer: of the texts; None for a method without any.
      views: the method's inputs, made of a record.
      steps: length of the run.
      step: the jitted functions.
      encoder: of evaluations.
      loader: the training batches.
      notes: lines on what is unusual about the data.
    """

    config: Config
    workdir: pathlib.Path
    method: methods.Method
    mesh: Mesh
    source: Source
    validation: Validation | None
    evaluations: Sequence[evaluate.Evaluation]
    tokenizer: Tokenizer | None
    views: Views
    steps: int
    step: Step
    encoder: Encoder
    loader: loader.TrainingLoader
    notes: tuple[str, ...]

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return jax.process_index() == 0

    def write_config(self) -> None:
        """Writes config.json and tokenizer.json into the workdir, which is made if it is missing."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        _write(self.workdir / "config.json", json.dumps(to_dict(self.config), indent=1) + "\n")
        if self.tokenizer is not None:
            _write(self.workdir / "tokenizer.json", self.tokenizer.to_json())


def build(config: Config, workdir: pathlib.Path, saved_tokenizer: str | None) -> Run:
    """Builds a run; reads a few records and, if the recipe asks for it, trains a vocabulary.

    Args:
      config: the recipe.
      workdir: of the run.
      saved_tokenizer: the content of tokenizer.json if the run goes on.

    Raises:
      UserError: something in the config or the data that a person can mend.
    """
    data = config.data
    method = methods.from_config(config.method)
    if config.init_only and not config.init_from:
        raise UserError("config.init_only: nothing says from where; give config.init_from=WEIGHTS")
    check_used(method.inputs(), data)
    mesh = sharding.create(config.mesh)
    sharding.check_divides(config, mesh)
    evaluators = evaluate.from_config(config.evaluations(method.task))
    evaluate.check(evaluators, method)
    source = _opened("data.train", data.train, data.root)
    check_room(method.inputs(), len(source))
    found = findings.preflight(source, "data.train", max_pixels=data.max_pixels, max_skip_rate=data.max_skip_rate)
    where = "" if config.evals else "data.eval"
    evaluations = [evaluate.Evaluation(name, item, data.root, where) for name, item in evaluators.items()]
    eval_source = _opened("data.eval", data.eval, data.root) if data.eval else None
    tokenizer = vocabulary.tokenizer_of(method.inputs(), data, source, saved_tokenizer)
    if tokenizer is not None:
        method.check(tokenizer)
    views = Views(method.inputs(), data, tokenizer)
    validation = Validation(eval_source, views, config.batch_size, mesh) if eval_source else None
    steps = config.steps or math.ceil(config.epochs * len(source) / config.batch_size)
    step = Step(
        method,
        optimizer.create(config.optimizer, steps),
        mesh,
        precision=config.precision,
        attention=config.attention,
        microbatches=config.microbatches,
        groups=config.optimizer.groups,
        average_decay=config.optimizer.average_decay,
        augment=augmentation(method.inputs(), data),
    )
    _check_metrics(config, [evaluation.name for evaluation in evaluations])
    optimizer.check_groups(step.abstract_state.params, config.optimizer.groups)
    # A chunk that is bad as a whole comes up within one window.
    block = 4 * data.shuffle_window if mixture.is_chunked(source) else 1000
    training = loader.TrainingLoader(
        source=source,
        views=views,
        config=data,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        skips=skips.SkipLog(data.max_skip_rate, block),
    )
    return Run(
        config=config,
        workdir=workdir,
        method=method,
        mesh=mesh,
        source=source,
        validation=validation,
        evaluations=evaluations,
        tokenizer=tokenizer,
        views=views,
        steps=steps,
        step=step,
        encoder=Encoder(method, mesh, config.precision, tokenizer, attention=config.attention),
        loader=training,
        notes=tuple(data_notes(config, len(source), found)),
    )


def check_used(kinds: inputs.Inputs, data: DataConfig) -> None:
    """Raises UserError if a key of the data has no effect on the inputs of a method."""
    views = {kind.view for kind in kinds.values() if isinstance(kind, inputs.Image)}
    for name in data.views:
        if name not in views:
            raise UserError(f"config.data.views.{name}: no image of the method has this view; remove it")
    if data.augment_on_device and augmentation(kinds, data) is None:
        raise UserError(
            "config.data.augment_on_device=True: no image has color jitter, gray, blur, or a view that is flipped; "
            "remove it"
        )


def _opened(key: str, text: str | Sequence[tuple[str, float]], root: str) -> Source:
    """The source of a key of the config, which errors name."""
    try:
        return sources.open_source(text, root=root)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def check_room(kinds: inputs.Inputs, num_records: int) -> None:
    """Raises UserError if the method has room for fewer records than there are."""
    for kind in kinds.values():
        if isinstance(kind, inputs.RecordId) and 0 < kind.count < num_records:
            raise UserError(
                f"data.train has {num_records:,} records and the method has room for {kind.count:,}; "
                f"set config.method.records={num_records}"
            )


def data_notes(config: Config, num_records: int, found: findings.Findings) -> Iterator[str]:
    """Lines on what is unusual about the data and yet may be wanted."""
    if num_records < config.batch_size:
        yield (
            f"data.train has {num_records:,} records, fewer than batch_size={config.batch_size}: a batch holds some of "
            f"them more than once, and each counts as a wrong answer for itself"
        )
    if found.replaced_captions:
        yield (
            f"data.train: {found.replaced_captions:,} captions of {found.looked_at:,} sampled records have bytes that "
            f"are not UTF-8, which became U+FFFD"
        )
    if 2 * found.dark_images > len(found.examples):
        yield (
            f"data.train: {found.dark_images:,} of {len(found.examples):,} sampled images are almost black: if "
            f"they hold 12-bit values in 16 bits, multiply these by 16 when you export them"
        )
    trained_on = sources.names_of(config.data.train)
    evaluated = {"data.eval": config.data.eval} | {
        f"config.evals.{name}.data": str(evaluation.get("data", "")) for name, evaluation in config.evals.items()
    }
    also = [key for key, text in evaluated.items() if trained_on & sources.names_of(text) - {""}]
    if also:
        yield f"{', '.join(also)}: trained on, too; the figures do not tell how the model does on unseen data"


def _check_metrics(config: Config, evaluations: Sequence[str]) -> None:
    """Raises UserError if the best checkpoint or a plateau schedule goes by a metric that is never measured."""
    metrics = {"config.keep_best": config.keep_best}
    kind = schedule.from_config(config.optimizer.schedule)
    if isinstance(kind, schedule.Plateau):
        metrics["config.optimizer.schedule.metric"] = kind.metric
    for key, metric in metrics.items():
        name, _ = schedule.signed(metric)
        evaluation = name.rpartition("/")[0]
        if not metric or evaluation in evaluations or (name.startswith("validation_") and config.data.eval):
            continue
        known = ", ".join([f"{evaluation}/METRIC" for evaluation in evaluations] or ["NAME/METRIC of config.evals"])
        raise UserError(f"{key}={metric!r} is not measured: give validation_loss with config.data.eval, or {known}")


def _write(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
