"""python benchmarks/caption_speed.py: captions per second by beam search with a cache, beside transformers' generate.

Runs in a Python that has torch and transformers beside jaxclip. Both sides have a decoder of VirTex's size, random
weights and the tokens of an image's grid to attend to; they take turns. Prints captions per second and the ratio.
BERT's head has one more layer of width x width.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402

from jaxclip.context import Context  # noqa: E402
from jaxclip.towers.decoder import Decoder, DecoderConfig, TokenEmbedding  # noqa: E402
from jaxclip.towers.generation import beam_search  # noqa: E402

PLACES, START, END = 49, 1, 2


def ours(config: DecoderConfig, batch: int, beams: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from grids [batch, 49, width] to tokens, compiled."""
    rngs = nnx.Rngs(params=0)
    embedding, decoder = TokenEmbedding(config, rngs=rngs), Decoder(config, rngs=rngs)

    def step(tokens, cache, place):
        x, cache, _ = decoder.step(embedding.at(tokens, place, Context()), cache, place)
        return x @ embedding.token_embedding[...].T, cache

    @jax.jit
    def search(context):
        cache = decoder.begin(context, beams, config.context_length)
        limits = {"start": START, "end": END, "length": config.context_length}
        return beam_search(step, cache, batch, beams=beams, per_beam=beams, repeats=True, **limits)[0]

    return lambda context: np.asarray(search(jnp.asarray(context)))


def theirs(config: DecoderConfig, batch: int, beams: int) -> Callable[[np.ndarray], np.ndarray]:
    """The same with transformers' BERT as a decoder, whose blocks are post-norm with cross-attention, too."""
    torch.manual_seed(0)
    bert = transformers.BertLMHeadModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.context_length,
            is_decoder=True,
            add_cross_attention=True,
        )
    ).eval()
    start = torch.full((batch, 1), START)

    def search(context):
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        with torch.inference_mode():
            return bert.generate(
                start,
                encoder_hidden_states=torch.from_numpy(context),
                num_beams=beams,
                max_length=config.context_length,
                do_sample=False,
                use_cache=True,
                past_key_values=cache,  # BERT needs one of both kinds of attention.
                eos_token_id=END,
                pad_token_id=0,
            ).numpy()

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    width = arguments.width
    config = DecoderConfig(vocab_size=arguments.words, width=width, heads=width // 64, layers=arguments.layers)
    context = np.random.default_rng(0).standard_normal((arguments.batch, PLACES, width)).astype(np.float32)
    for beams in (1, 5):
        sides = {"jaxclip": ours, "transformers": theirs}
        searches = {name: make(config, arguments.batch, beams) for name, make in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in searches}
        lengths = {}
        for number in range(arguments.rounds + 1):
            for name, search in searches.items():
                begun = time.perf_counter()
                found = search(context)
                if number:  # The first round compiles.
                    seconds[name].append(time.perf_counter() - begun)
                ends = [np.flatnonzero(row[1:] == END) for row in found]
                lengths[name] = np.mean([row[0] + 2 if len(row) else found.shape[1] for row in ends])
        rates = {name: arguments.batch / statistics.median(times) for name, times in seconds.items()}
        shown = ", ".join(f"{name} {rate:.1f} captions/s ({lengths[name]:.1f} tokens)" for name, rate in rates.items())
        print(f"beams {beams}: {shown}, ratio {rates['jaxclip'] / rates['transformers']:.2f}")


if __name__ == "__main__":
    main()
