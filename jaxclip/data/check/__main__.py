"""python -m jaxclip.data.check SOURCE: statistics and a contact sheet of a data source.

Reads a sample, prints a table, and writes a contact sheet of images with their captions, questions and token counts.
With --config=RECIPE instead of a source (and any --config.KEY=VALUE), the sheet shows what the recipe gives its model:
training crops as augmented, evaluation crops, and texts with their tokens.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.io import printable
from jaxclip.paths import local
from jaxclip.progress import phase

_TIMED_SECONDS = 4.0
_MOST_LABELS = 10


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 2 if the data cannot be used for training."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", default="check.html", help="the sheet (default: check.html)")
    if any(argument.partition("=")[0] == "--config" for argument in argv):
        parser.add_argument("--config", required=True, help="a recipe, such as configs/quickstart.py")
        parser.add_argument("--sample", type=int, default=8, help="records to draw (default: 8)")
        parser.add_argument("--epochs", type=int, default=3, help="training crops of each record (default: 3)")
        arguments, keys = parser.parse_known_args(argv)
        check = functools.partial(_check_recipe, arguments, keys)
    else:
        parser.add_argument(
            "source", nargs="?", help="as in config.data.train: 'shards/*.tar', file.csv, tfds:NAME, ..."
        )
        parser.add_argument("--root", default="", help="the folder that relative paths start from")
        parser.add_argument("--sample", type=int, default=256, help="records to read (default: 256)")
        parser.add_argument("--vocabulary", help="to count tokens with (default: one trained on the sample's captions)")
        parser.add_argument("--context-length", type=int, default=77, help="tokens per text (default: 77)")
        parser.add_argument("--image-size", type=int, default=224, help="side of a crop in pixels (default: 224)")
        parser.add_argument("--max-skip-rate", type=float, default=0.1, help="as data.max_skip_rate (default: 0.1)")
        check = functools.partial(_check_source, parser.parse_args(argv))
    return run_command(lambda _: check())


def _check_recipe(arguments: argparse.Namespace, keys: list[str]) -> int:
    from jaxclip import command_line
    from jaxclip.config import Config
    from jaxclip.data.check import recipe_sample, recipe_sheet
    from jaxclip.parsing import parse

    if arguments.sample < 1 or arguments.epochs < 1:
        raise UserError("--sample and --epochs must be at least 1")
    output = _output(arguments)
    config = parse(Config, command_line.read([sys.argv[0], f"--config={arguments.config}", *keys]))
    with phase(f"drawing {arguments.sample} records"):
        sample = recipe_sample.sample(config, arguments.sample, arguments.epochs)
    _write(output, recipe_sheet.sheet(arguments.config, sample))
    _print([("recipe", arguments.config), *recipe_sheet.table(sample), ("sheet", str(output.absolute()))])
    return 0


def _check_source(arguments: argparse.Namespace) -> int:
    from jaxclip.data import findings, sources, storage, tokenizers
    from jaxclip.data.check import contact_sheet
    from jaxclip.inputs import Text

    if not arguments.source:
        raise UserError("give a source, such as 'shards/*.tar', or --config=RECIPE")
    if arguments.sample < 1 or arguments.image_size < 1 or arguments.context_length < 2:
        raise UserError("--sample and --image-size must be at least 1, and --context-length at least 2")
    output = _output(arguments)
    with phase("opening the data"):
        source = sources.open_source(arguments.source, root=arguments.root)
    with phase(f"reading {min(arguments.sample, len(source)):,} records"):
        sampled = findings.look_at(source, arguments.sample)
    if sampled.examples:
        with phase("reading the texts"):
            if arguments.vocabulary:
                tokenizer = tokenizers.load(storage.resolve(arguments.vocabulary, arguments.root))
            else:
                tokenizer = tokenizers.train(_texts(sampled), 4096)
        # One place more than the context, which shows what is truncated.
        first = [example.text for example in sampled.examples]
        tokens = tokenizers.text_lengths(tokenizer, tokenizer(first, arguments.context_length + 1)[0])
        with phase("measuring the speed"):
            captioned = any(example.captions for example in sampled.examples)
            text = Text(arguments.context_length, "caption" if captioned else "question")
            rate = _images_per_second(source, tokenizer, text, arguments)
    else:
        tokens, rate = [], 0.0
    name = pathlib.Path(arguments.vocabulary).name if arguments.vocabulary else "a vocabulary trained on these texts"
    table = _table(sampled, tokens=tokens, rate=rate, arguments=arguments, vocabulary=name)
    _write(output, contact_sheet.page(arguments.source, table, sampled, tokens))
    _print([*table, ("contact sheet", str(output.absolute()))])
    findings.judge(sampled, arguments.source, arguments.max_skip_rate)
    return 0


def _output(arguments: argparse.Namespace) -> pathlib.Path:
    output = local(arguments.output, "--output")
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; give a file name")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: the folder {output.absolute().parent} does not exist; create it")
    return output


def _write(output: pathlib.Path, page: str) -> None:
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error


def _print(table: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in table)
    for name, value in table:
        print(f"{name:<{width}}  {printable(value)}")


def _texts(sampled) -> Iterator[str]:
    """The captions, questions and answers of a sample."""
    for example in sampled.examples:
        yield from example.captions
        for question in example.questions:
            yield question.text
            yield from (answer for answer, _ in question.answers)


def _images_per_second(source, tokenizer, text, arguments: argparse.Namespace) -> float:
    """The rate at which this machine delivers the source, cropped and tokenized as for training."""
    from jaxclip.config import DataConfig
    from jaxclip.data.loader import TrainingLoader
    from jaxclip.data.views import Views
    from jaxclip.inputs import Image, Inputs

    # Bad records are only counted here, whatever their fraction.
    config = DataConfig(train=arguments.source, train_vocabulary=4096, max_skip_rate=1.0)
    batch = 64
    inputs: Inputs = {"image": Image(arguments.image_size), "text": text}
    loader = TrainingLoader(source, Views(inputs, config, tokenizer), config, batch, seed=0)
    start_time, count = 0.0, -batch
    for _ in loader.batches(0, 1 << 30):
        count += batch
        if not count:  # the first batch includes the start-up
            start_time = time.perf_counter()
        elif time.perf_counter() - start_time > _TIMED_SECONDS:
            break
    return count / (time.perf_counter() - start_time)


def _table(sampled, *, tokens: list[int], rate: float, arguments: argparse.Namespace, vocabulary: str):
    """The lines of the table: (name, value)."""
    examples, fraction = sampled.examples, len(sampled.examples) / sampled.looked_at
    lines = [
        ("source", arguments.source),
        ("records", f"{sampled.records:,}; {sampled.looked_at:,} sampled, spread evenly"),
        ("usable", f"{len(examples):,} of {sampled.looked_at:,} ({fraction:.1%})"),
    ]
    for reason, number in sampled.skips.counts.most_common():
        lines.append(("skipped", f"{number:,} x {reason}, such as {sampled.skips.example(reason)}"))
    for shard, number in sampled.at_fault.most_common(5):
        lines.append(("at fault", f"{shard}: {number:,}"))
    if examples:
        sizes = sorted((example.size for example in examples), key=lambda size: size[0] * size[1])
        small, median, large = sizes[0], sizes[len(sizes) // 2], sizes[-1]
        stored = statistics.mean(example.stored for example in examples) / 1000
        captions = [example.captions for example in examples if example.captions]
        questions = [example.questions for example in examples if example.questions]
        percentile = sorted(tokens)[int(0.95 * (len(tokens) - 1))]
        num_truncated = sum(number > arguments.context_length for number in tokens)
        lines += [
            (
                "images",
                f"{median[0]} x {median[1]} (median), {small[0]} x {small[1]} to {large[0]} x {large[1]}; "
                f"{stored:,.1f} kB on average",
            ),
            *([("captions", _per_image(captions, [texts[0] for texts in captions]))] if captions else []),
            *([("questions", _questions(questions, sampled))] if questions else []),
            (
                "repeated",
                f"{sampled.repeated_images:,} images and {sampled.repeated_captions:,} captions of the sample occur "
                f"more than once",
            ),
            *(
                [("encoding", f"{replaced:,} captions have bytes that are not UTF-8, which became U+FFFD")]
                if (replaced := sampled.replaced_captions)
                else []
            ),
            *([("dark", f"{dark:,} images are almost black")] if (dark := sampled.dark_images) else []),
            (
                "tokens",
                f"median {statistics.median_low(tokens)}, 95 % have at most {percentile}, {num_truncated:,} of "
                f"{len(tokens):,} are truncated to {arguments.context_length} ({vocabulary})",
            ),
            (
                "speed",
                f"{rate:,.0f} images/s to {arguments.image_size} x {arguments.image_size} pixels on "
                f"{os.cpu_count()} CPU threads",
            ),
        ]
    return lines


def _per_image(groups: Sequence[Sequence[object]], texts: Sequence[str]) -> str:
    """How many texts an image has, and how long they are."""
    counts = [len(group) for group in groups]
    words = sorted(len(text.split()) for text in texts)
    number = f"{min(counts)} to {max(counts)}" if max(counts) > 1 else "1"
    return f"{number} per image, of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}"


def _questions(groups, sampled) -> str:
    """As `_per_image` of questions, and how many have answers and each of the labels."""
    questions = [question for group in groups for question in group]
    answered = sum(bool(question.answers) for question in questions)
    labels = collections.Counter(question.label for question in questions if question.label is not None)
    counts = [f"{answered:,} of {len(questions):,} with answers"] if answered or not labels else []
    counts += [f"{sampled.name_of(label)} {number:,}" for label, number in labels.most_common(_MOST_LABELS)]
    return f"{_per_image(groups, [question.text for question in questions])}; {', '.join(counts)}"


if __name__ == "__main__":
    sys.exit(main())
