"""python -m jaxclip.data.tokenizers SOURCE --out=tokenizer.json: trains a vocabulary on a source's captions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from jaxclip.data.mixture import spread
from jaxclip.data.record import Record, Source
from jaxclip.data.sources import open_source
from jaxclip.data.tokenizers import Tokenizer, clip, virtex, wordpiece
from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.paths import local

_TRAIN: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
    "clip": clip.train,
    "sentencepiece": virtex.train,
    "wordpiece": wordpiece.train,
}
_BLOCK = 1024  # records read, and captions tokenized, at a time
_CONTEXT = 77  # CLIP's
_LONGEST = 1024  # longer captions are counted as this many tokens


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.data.tokenizers", description=__doc__)
    parser.add_argument("source", help="as in a config's data.train, such as shapes or 'train-{00000..00099}.tar'")
    parser.add_argument("--out", required=True, help="the file to write, for data.vocabulary")
    parser.add_argument("--size", default=32768, type=int, help="maximum size of the vocabulary (default: 32768)")
    parser.add_argument(
        "--kind",
        default="clip",
        choices=_TRAIN,
        help="clip: CLIP's BPE; sentencepiece: VirTex's, with [MASK]; wordpiece: BERT's, with [MASK]",
    )
    parser.add_argument("--limit", type=int, help="number of records to read, spread over the source (default: all)")
    parser.add_argument("--root", default="", help="the folder that relative paths start from")
    arguments = parser.parse_args(argv)
    return run_command(lambda _: _train(arguments))


def _train(arguments: argparse.Namespace) -> None:
    out = local(arguments.out, "--out")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out={out}: the folder {out.absolute().parent} does not exist; create it")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit={arguments.limit} must be at least 1")
    source = open_source(arguments.source, root=arguments.root)
    captions: list[str] = []
    tokenizer = _TRAIN[arguments.kind](_collect(_captions(source, arguments.limit), captions), arguments.size)
    if not captions:
        raise UserError(f"{arguments.source}: no record has a caption; choose another source")
    try:
        out.write_text(tokenizer.to_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    lengths = _lengths(tokenizer, captions)
    print(f"{out}: a vocabulary of {tokenizer.vocab_size:,}")
    print(f"tokens per caption: {lengths.mean():.1f} on average, start and end included")
    print(f"captions of more than {_CONTEXT} tokens: {(lengths > _CONTEXT).sum():,} of {len(captions):,}")


def _collect(captions: Iterator[str], into: list[str]) -> Iterator[str]:
    """Yields the captions and appends each to a list."""
    for caption in captions:
        into.append(caption)
        yield caption


def _captions(source: Source, limit: int | None) -> Iterator[str]:
    """The captions of a source's usable records, in the order of their ids; shows a progress bar."""
    count = len(source) if limit is None else min(limit, len(source))
    ids = range(len(source)) if count == len(source) else spread(source, count)
    with tqdm(total=len(ids), unit=" records", file=sys.stderr) as progress:
        for start in range(0, len(ids), _BLOCK):
            records = source.read(ids[start : start + _BLOCK])
            for record in records:
                if isinstance(record, Record):
                    yield from record.captions
            progress.update(len(records))


def _lengths(tokenizer: Tokenizer, captions: Sequence[str]) -> np.ndarray:
    """The number of tokens of each caption, int64 [captions]."""
    blocks = (captions[start : start + _BLOCK] for start in range(0, len(captions), _BLOCK))
    return np.concatenate([tokenizer(block, _LONGEST)[1] for block in blocks]).astype(int) + 1


if __name__ == "__main__":
    sys.exit(main())
