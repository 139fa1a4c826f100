"""python benchmarks/albef_speed.py: ALBEF's training step, beside the same stages of transformers' modules in PyTorch.

Runs in a Python that has torch and transformers beside jaxclip, on the CPU in float32. Both sides take uint8 images and
token ids, and compute the image's tokens and the text's states by the model and by its momentum copy, the contrastive
loss with queues and soft targets, hard negatives within groups, three pairs per record through the upper half of BERT,
masked words with the copy's soft labels, the gradient, AdamW, and the copy's update. Neither has dropout, and both
score words at the masked places alone. The sides take turns; printed are images per second by the median step, the
ratio, and the last losses, which are near those of a guess on both sides.

Beside other work the figures mean nothing: PyTorch's threads wait actively for one that another process has displaced.
Then give the benchmark one core (taskset -c 0).
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers.models.bert import modeling_bert  # noqa: E402

from jaxclip import optimizer, sharding  # noqa: E402
from jaxclip.config import MeshConfig, OptimizerConfig, PixelsConfig  # noqa: E402
from jaxclip.methods.albef import Method  # noqa: E402
from jaxclip.step import Step  # noqa: E402
from jaxclip.towers.bert import BertConfig  # noqa: E402
from jaxclip.towers.vit import ViTConfig  # noqa: E402

MASK, ALPHA, MOMENTUM, TEMPERATURE, RATE, DECAY = 103, 0.4, 0.995, 0.07, 1e-4, 0.02
Batch = dict[str, np.ndarray]
Train = Callable[[Batch], list[float]]  # the contrastive, the matching and the masked loss of one step


def drawn(sizes: argparse.Namespace, number: int) -> Batch:
    """Random images, and random texts of which most are padded."""
    rng = np.random.default_rng(number)
    end = rng.integers(sizes.length // 2, sizes.length, sizes.batch)
    tokens = rng.integers(1000, sizes.words, (sizes.batch, sizes.length))
    tokens[:, 0], tokens[np.arange(sizes.batch), end] = 101, 102
    tokens[np.arange(sizes.length) > end[:, None]] = 0
    images = rng.integers(0, 256, (sizes.batch, sizes.image, sizes.image, 3), np.uint8)
    return {"image": images, "text": tokens.astype(np.int32), "text_end": end.astype(np.int32)}


def ours(sizes: argparse.Namespace) -> Train:
    shared = {"width": sizes.width, "heads": sizes.width // 64, "layers": sizes.layers, "scan": False}
    image = {"ln_pre": False, "patch_bias": True, "activation": "gelu", "eps": 1e-6}
    method = Method(
        image=ViTConfig(image_size=sizes.image, patch_size=sizes.patch, **shared, **image),
        text=BertConfig(vocab_size=sizes.words, context_length=sizes.length, **shared),
        embed_dim=sizes.embed,
        queue=sizes.queue,
        momentum=MOMENTUM,
        temperature=TEMPERATURE,
        distillation=ALPHA,
        negatives_among=sizes.group,
    )
    mesh = sharding.create(MeshConfig(), jax.devices()[:1])
    config = OptimizerConfig(RATE, warmup_steps=0, beta2=0.999, eps=1e-8, weight_decay=DECAY)
    step = Step(method, optimizer.create(config, 1000), mesh, precision="float32")
    state = step.init(0)

    def train(batch: Batch) -> list[float]:
        nonlocal state
        state, metrics = step.train(state, batch)
        jax.block_until_ready(state)
        return [float(metrics[f"{name}_loss"]) for name in ("contrastive", "matching", "masked")]

    return train


class Encoders(torch.nn.Module):
    """What there is a momentum copy of."""

    def __init__(self, sizes: argparse.Namespace):
        super().__init__()
        width, heads = sizes.width, sizes.width // 64
        drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        blocks = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, **drop}
        blocks |= {"num_hidden_layers": sizes.layers, "attn_implementation": "sdpa"}
        vit = transformers.ViTConfig(image_size=sizes.image, patch_size=sizes.patch, layer_norm_eps=1e-6, **blocks)
        self.image = transformers.ViTModel(vit, add_pooling_layer=False)
        config = {"vocab_size": sizes.words, "max_position_embeddings": sizes.length, **blocks}
        bert = transformers.BertConfig(**config)
        # A mask is given, so that these blocks are not causal.
        fusion = transformers.BertConfig(is_decoder=True, add_cross_attention=True, **config)
        half = sizes.layers // 2
        self.embeddings = modeling_bert.BertEmbeddings(bert)
        self.lower = torch.nn.ModuleList(modeling_bert.BertLayer(bert) for _ in range(half))
        self.upper = torch.nn.ModuleList(modeling_bert.BertLayer(fusion) for _ in range(sizes.layers - half))
        self.words = modeling_bert.BertLMPredictionHead(bert)
        self.image_projection = torch.nn.Linear(width, sizes.embed)
        self.text_projection = torch.nn.Linear(width, sizes.embed)
        for module in self.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.02)
        self.words.decoder.weight, self.words.decoder.bias = self.embeddings.word_embeddings.weight, self.words.bias

    def text_states(self, tokens, seen):
        states = self.embeddings(tokens)
        for layer in self.lower:
            states = layer(states, seen)
        return states

    def fuse(self, images, states, seen):
        for layer in self.upper:
            states = layer(states, seen, images)
        return states

    def forward(self, pixels, tokens, seen):
        images, states = self.image(pixels).last_hidden_state, self.text_states(tokens, seen)
        image, text = self.image_projection(images[:, 0]), self.text_projection(states[:, 0])
        return images, states, functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)

    def word_logits(self, images, tokens, seen, slots):
        fused = self.fuse(images, self.text_states(tokens, seen), seen)
        return self.words(fused.gather(1, slots[..., None].expand(-1, -1, fused.shape[-1])))


class Albef(torch.nn.Module):
    """The model with its copy and its queues; a call gives the losses and the keys of the batch."""

    def __init__(self, sizes: argparse.Namespace):
        super().__init__()
        self.sizes = sizes
        self.fast = Encoders(sizes)
        self.matching = torch.nn.Linear(sizes.width, 2)
        self.temperature = torch.nn.Parameter(torch.tensor(TEMPERATURE))
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        queues = (functional.normalize(torch.randn(sizes.queue, sizes.embed), dim=-1) for _ in range(2))
        self.image_queue, self.text_queue = map(torch.nn.Buffer, queues)
        pixels = PixelsConfig()
        self.mean, self.std = (torch.nn.Buffer(torch.tensor(part)[:, None, None]) for part in (pixels.mean, pixels.std))

    def forward(self, images, tokens, end):
        pixels = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - self.mean) / self.std
        seen = (torch.arange(tokens.shape[1]) <= end[:, None])[:, None, None]
        fast = self.fast(pixels, tokens, seen)
        with torch.no_grad():
            slow = self.slow(pixels, tokens, seen)
        contrastive = self.contrastive(fast[2:], slow[2:])
        return contrastive, self.match(*fast, seen), self.masked(fast[0], slow[0], tokens, end, seen), *slow[2:]

    def contrastive(self, fast, slow):
        loss, own = 0.0, torch.eye(len(fast[0]), len(fast[0]) + self.sizes.queue)
        for side, queue in enumerate((self.text_queue, self.image_queue)):
            keys = torch.cat([slow[1 - side], queue])
            with torch.no_grad():
                targets = (1 - ALPHA) * own + ALPHA * torch.softmax(slow[side] @ keys.T / self.temperature, dim=1)
            loss += functional.cross_entropy(fast[side] @ keys.T / self.temperature, targets) / 2
        return loss

    def match(self, images, states, image, text, seen):
        batch, group = len(images), self.sizes.group
        with torch.no_grad():
            grouped = (part.view(-1, group, part.shape[-1]) for part in (image, text))
            logits = torch.einsum("gid,gjd->gij", *grouped) / self.temperature
            logits = logits.masked_fill(torch.eye(group, dtype=torch.bool), -torch.inf)
            first = torch.arange(0, batch, group)[:, None]
            of_image, of_text = (
                (torch.multinomial(part.softmax(-1).view(batch, group), 1).view(-1, group) + first).flatten()
                for part in (logits, logits.transpose(1, 2))
            )
        fused = self.fast.fuse(
            torch.cat([images, images[of_text], images]),
            torch.cat([states, states, states[of_image]]),
            torch.cat([seen, seen, seen[of_image]]),
        )
        return functional.cross_entropy(self.matching(fused[:, 0]), (torch.arange(3 * batch) < batch).long())

    def masked(self, images, slow_images, tokens, end, seen):
        places, slots = torch.arange(tokens.shape[1]), math.ceil(0.15 * (tokens.shape[1] - 2))
        inside = (places > 0) & (places < end[:, None])
        order = torch.rand(tokens.shape).masked_fill(~inside, 2.0).topk(slots, dim=1, largest=False).indices
        weights = (torch.arange(slots) < torch.ceil(0.15 * (end - 1) - 1e-4)[:, None]).float()
        labels, kind = tokens.gather(1, order), torch.rand(order.shape)
        random = torch.randint_like(labels, self.sizes.words)
        new = torch.where(kind < 0.8, MASK, torch.where(kind < 0.9, random, labels))
        masked = tokens.scatter(1, order, torch.where(weights > 0, new, labels))
        with torch.no_grad():
            soft = self.slow.word_logits(slow_images, masked, seen, order).softmax(dim=-1)
        shares = self.fast.word_logits(images, masked, seen, order).log_softmax(dim=-1)
        hard = shares.gather(2, labels[..., None])[..., 0]
        losses = -(1 - ALPHA) * hard - ALPHA * (soft * shares).sum(dim=-1)
        return (losses * weights).sum() / weights.sum()


def theirs(sizes: argparse.Namespace, *, compiled: bool) -> Train:
    torch.manual_seed(0)
    model = Albef(sizes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": DECAY},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8, fused=True)
    copies = list(model.slow.parameters()), list(model.fast.parameters())
    losses_of = torch.compile(model) if compiled else model
    place = 0

    def train(batch: Batch) -> list[float]:
        nonlocal place
        with torch.no_grad():
            torch._foreach_lerp_(*copies, 1 - MOMENTUM)
        *losses, image, text = losses_of(*(torch.from_numpy(part) for part in batch.values()))
        adam.zero_grad(set_to_none=True)
        sum(losses).backward()
        adam.step()
        with torch.no_grad():
            model.temperature.clamp_(0.001, 0.5)
            for queue, keys in ((model.image_queue, image), (model.text_queue, text)):
                queue[place : place + sizes.batch] = keys
        place = (place + sizes.batch) % sizes.queue
        return [loss.item() for loss in losses]

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, default=64, help="pixels of a side")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--width", type=int, default=256, help="of both towers; heads are 64 wide")
    parser.add_argument("--layers", type=int, default=4, help="of both towers; half of the text's fuse")
    parser.add_argument("--length", type=int, default=25, help="tokens of a text")
    parser.add_argument("--words", type=int, default=30_522)
    parser.add_argument("--embed", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=16, help="records among which hard negatives are drawn")
    parser.add_argument("--queue", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile as a third side; needs a C++ compiler")
    sizes = parser.parse_args()
    sides = {"jaxclip": ours(sizes), "PyTorch": theirs(sizes, compiled=False)}
    if sizes.compile:
        sides["torch.compile"] = theirs(sizes, compiled=True)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    last: dict[str, list[float]] = {}
    for number in range(sizes.rounds + 2):
        batch = drawn(sizes, number)
        for name, train in sides.items():
            time.sleep(0.2)  # The other side's threads wait actively for a while.
            begun = time.perf_counter()
            last[name] = train(batch)
            if number > 1:  # The first rounds compile.
                seconds[name].append(time.perf_counter() - begun)
    rates = {name: sizes.batch / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in zip(("ITC", "ITM", "MLM"), last[name], strict=True))
        fastest, slowest = (sizes.batch / extreme(seconds[name]) for extreme in (min, max))
        print(f"{name}: {rate:.1f} images/s ({slowest:.1f} to {fastest:.1f}); losses {losses}")
    for name in list(rates)[1:]:
        print(f"jaxclip / {name}: {rates['jaxclip'] / rates[name]:.2f}")


if __name__ == "__main__":
    main()
