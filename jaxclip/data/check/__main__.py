"""python -m jaxclip.data.check SOURCE: what a source holds, before a run trains on it.

Reads a sample, prints a table, and writes a contact sheet to look at: pictures with their captions and token counts.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time

import numpy as np

from jaxclip.errors import UserError
from jaxclip.io import printable

_TIMED_SECONDS = 4.0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 2 where the source cannot be trained on."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m jaxclip.data.check", description=f"{summary} {more}")
    parser.add_argument("source", help="as config.data.train names it: 'shards/*.tar', file.csv, tfds:NAME, ...")
    parser.add_argument("--root", default="", help="the folder that relative paths start from")
    parser.add_argument("--sample", type=int, default=256, help="records to read (default: 256)")
    parser.add_argument("--vocabulary", help="counts its tokens (default: one trained on the sample's captions)")
    parser.add_argument("--context-length", type=int, default=77, help="tokens of a text (default: 77)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a training crop (default: 224)")
    parser.add_argument("--max-skip-rate", type=float, default=0.1, help="data.max_skip_rate of the run (default: 0.1)")
    parser.add_argument("--output", default="check.html", help="the contact sheet (default: check.html)")
    arguments = parser.parse_args(argv)
    try:
        return _check(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check(arguments: argparse.Namespace) -> int:
    from jaxclip.data import findings, sources, storage, tokenizers
    from jaxclip.data.check import contact_sheet

    if arguments.sample < 1 or arguments.image_size < 1 or arguments.context_length < 2:
        raise UserError("--sample and --image-size must be at least 1, and --context-length at least 2")
    output = pathlib.Path(arguments.output)
    if output.is_dir():
        raise UserError(f"--output={output} is a folder: name a file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.absolute().parent}")
    source = sources.open_source(arguments.source, root=arguments.root)
    found = findings.look_at(source, arguments.sample)
    if found.examples:
        if arguments.vocabulary:
            tokenizer = tokenizers.load(storage.resolve(arguments.vocabulary, arguments.root))
        else:
            tokenizer = tokenizers.train((c for example in found.examples for c in example.captions), 4096)
        tokens = _count_tokens(found, tokenizer, arguments.context_length)
        rate = _pictures_per_second(source, tokenizer, arguments)
    else:
        tokens, rate = [], 0.0
    of = pathlib.Path(arguments.vocabulary).name if arguments.vocabulary else "a vocabulary trained on these captions"
    table = _table(found, tokens, rate, arguments, of)
    try:
        output.write_text(contact_sheet.page(arguments.source, table, found, tokens), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}") from error
    for name, value in [*table, ("contact sheet", str(output.absolute()))]:
        print(f"{name:<13}  {printable(value)}")
    findings.judge(found, arguments.source, arguments.max_skip_rate)
    return 0


def _count_tokens(found, tokenizer, context_length: int) -> list[int]:
    """The tokens of each example's first caption, start and end included, up to one more than the context holds."""
    tokens, _ = tokenizer([example.captions[0] for example in found.examples], context_length + 1)
    # Up to the padding. Where texts end with what they are padded with (SigLIP's c4), the end is one of those.
    ends_as_padded = tokenizer.end_id == tokenizer.pad_id
    lengths = [int(np.max(np.flatnonzero(row != tokenizer.pad_id), initial=-1)) + 1 for row in tokens]
    return [min(length + ends_as_padded, context_length + 1) for length in lengths]


def _pictures_per_second(source, tokenizer, arguments: argparse.Namespace) -> float:
    """What this machine delivers of the source, cropped and tokenised as for training."""
    from jaxclip.config import DataConfig
    from jaxclip.data.loader import TrainingLoader

    # Whatever the share of bad records, they are counted and not a reason to stop here.
    config = DataConfig(train=arguments.source, train_vocabulary=4096, max_skip_rate=1.0)
    batch = 64
    loader = TrainingLoader(source, tokenizer, config, arguments.image_size, arguments.context_length, batch, 0)
    began, count = 0.0, -batch
    for _ in loader.batches(0, 1 << 30):
        count += batch
        if not count:  # the first batch has the start-up in it
            began = time.perf_counter()
        elif time.perf_counter() - began > _TIMED_SECONDS:
            break
    return count / (time.perf_counter() - began)


def _table(found, tokens: list[int], rate: float, arguments: argparse.Namespace, vocabulary: str):
    """The lines of the table: (name, value)."""
    examples, share = found.examples, len(found.examples) / found.looked_at
    lines = [
        ("source", arguments.source),
        ("records", f"{found.records:,}; {found.looked_at:,} looked at, spread evenly"),
        ("usable", f"{len(examples):,} of {found.looked_at:,} ({share:.1%})"),
    ]
    for reason, number in found.skips.counts.most_common():
        lines.append(("skipped", f"{number:,} x {reason}, such as {found.skips.example(reason)}"))
    for shard, number in found.at_fault.most_common(5):
        lines.append(("at fault", f"{shard}: {number:,}"))
    if examples:
        sizes = sorted((example.size for example in examples), key=lambda size: size[0] * size[1])
        small, median, large = sizes[0], sizes[len(sizes) // 2], sizes[-1]
        stored = statistics.mean(example.stored for example in examples) / 1000
        captions = [len(example.captions) for example in examples]
        words = sorted(len(example.captions[0].split()) for example in examples)
        most = sorted(tokens)[int(0.95 * (len(tokens) - 1))]
        cut = sum(number > arguments.context_length for number in tokens)
        lines += [
            (
                "pictures",
                f"{median[0]} x {median[1]} (median), {small[0]} x {small[1]} to {large[0]} x {large[1]}; "
                f"{stored:,.1f} kB on average",
            ),
            (
                "captions",
                f"{min(captions)} to {max(captions)} a picture, of {words[0]} to {words[-1]} words, "
                f"median {words[len(words) // 2]}"
                if max(captions) > 1
                else f"1 a picture, of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}",
            ),
            (
                "tokens",
                f"median {statistics.median_low(tokens)}, 95 % have at most {most}, {cut:,} of {len(tokens):,} are cut "
                f"at {arguments.context_length} ({vocabulary})",
            ),
            (
                "speed",
                f"{rate:,.0f} pictures/s to {arguments.image_size} x {arguments.image_size} pixels on "
                f"{os.cpu_count()} CPU threads",
            ),
        ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
