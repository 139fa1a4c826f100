"""Embeddings and folders of open_clip, transformers, torchvision and timm; runs in a Python with these libraries.

python peer_weights.py make NAME FOLDER: open_clip's model NAME with golden/made.py's weights, as an open_clip folder.
python peer_weights.py embed openclip|huggingface FOLDER INPUTS.json OUT.npz: opens a folder as that library's own, and
  embeds the files and texts that {"images": [...], "texts": [...]} lists by the library's own preprocessing.
python peer_weights.py retrieve FOLDER PAIRS.json OUT.json: recalls of [[image file, [caption, ...]], ...] by
  open_clip's model, transform and tokenizer.
python peer_weights.py features MODEL FOLDER INPUTS.npz OUT.npz: pooled features of uint8 images by an image tower that
  loads FOLDER/model.safetensors; MODEL is {"torchvision" or "timm": its name there, ...keywords of the constructor}.
python peer_weights.py bert FOLDER: a small BertModel of transformers with random weights, as its own folder.
python peer_weights.py states FOLDER IDS.json OUT.npz: the last hidden states of a BertModel for rows of token ids,
  which are padded with zeros that it does not attend to.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import torch
from paths import GOLDEN
from PIL import Image

sys.path.insert(0, str(GOLDEN))


def make(name: str, folder: pathlib.Path) -> None:
    import make as golden
    import open_clip
    import safetensors.torch

    model, _, transform = open_clip.create_model_and_transforms(name)
    golden.fill(model)
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")


def open_folder(kind: str, folder: str):
    """(embed images, embed texts, token ids of texts, ln of the scale, bias)."""
    if kind == "openclip":
        import open_clip

        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.eval()
        bias = float(model.logit_bias) if model.logit_bias is not None else 0.0

        def embed_images(batch):
            return model.encode_image(torch.stack([transform(image) for image in batch]))

        return (
            embed_images,
            lambda texts: model.encode_text(tokenizer(texts)),
            tokenizer,
            float(model.logit_scale),
            bias,
        )
    import transformers

    model, loading = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    wrong = {key: value for key, value in loading.items() if value}
    assert not wrong, wrong
    model.eval()
    # Of the two that there are, the one that resizes with Pillow, as CLIP was trained.
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    context = model.config.text_config.max_position_embeddings

    def tokenizer(texts):
        settings = {"padding": "max_length", "truncation": True, "max_length": context, "return_tensors": "pt"}
        return words(texts, **settings)["input_ids"]

    def first(output):
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    def embed_images(batch):
        return first(model.get_image_features(**processor(images=batch, return_tensors="pt")))

    def texts(strings):
        return first(model.get_text_features(input_ids=tokenizer(strings)))

    bias = float(model.logit_bias) if hasattr(model, "logit_bias") else 0.0
    return embed_images, texts, tokenizer, float(model.logit_scale), bias


def in_parts(embed, items: list, size: int = 32) -> np.ndarray:
    with torch.no_grad():
        parts = [embed(items[start : start + size]) for start in range(0, len(items), size)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()


def images_of(paths: list[str]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def embed(kind: str, folder: str, inputs: dict, out: str) -> None:
    images, texts, tokenizer, scale, bias = open_folder(kind, folder)
    np.savez(
        out,
        image=in_parts(images, images_of(inputs["images"])),
        text=in_parts(texts, inputs["texts"]),
        tokens=tokenizer(inputs["texts"]).numpy(),
        logit_scale=scale,
        logit_bias=bias,
    )


def retrieve(folder: str, pairs: list, out: str) -> None:
    images, texts, _, _, _ = open_folder("openclip", folder)
    embedded = in_parts(images, images_of([path for path, _ in pairs]))
    captions = [(row, caption) for row, (_, listed) in enumerate(pairs) for caption in listed]
    owners = np.array([row for row, _ in captions])
    similarity = embedded @ in_parts(texts, [caption for _, caption in captions]).T
    # How many are ahead of the best right one.
    own = owners[None, :] == np.arange(len(pairs))[:, None]
    best = np.where(own, similarity, -np.inf).max(axis=1)
    text_ranks = ((similarity > best[:, None]) & ~own).sum(axis=1)
    image_ranks = (similarity > similarity[owners, np.arange(len(owners))]).sum(axis=0)
    recalls = {f"text_retrieval_recall@{k}": float((text_ranks < k).mean()) for k in (1, 5, 10)}
    recalls |= {f"image_retrieval_recall@{k}": float((image_ranks < k).mean()) for k in (1, 5, 10)}
    pathlib.Path(out).write_text(json.dumps(recalls))


def features(model: dict, folder: str, inputs: str, out: str) -> None:
    import safetensors.torch

    state = safetensors.torch.load_file(pathlib.Path(folder, "model.safetensors"))
    if "torchvision" in model:
        import torchvision

        name = model.pop("torchvision")
        if "layers" in model:
            tower = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, model["layers"])
        else:
            tower = torchvision.models.get_model(name)
        loaded = tower.load_state_dict(state, strict=False)
        assert loaded.missing_keys == ["fc.weight", "fc.bias"] and not loaded.unexpected_keys, loaded
        tower.fc = torch.nn.Identity()
    else:
        import timm

        tower = timm.create_model(model.pop("timm"), num_classes=0, **model)
        tower.load_state_dict(state, strict=True)
    tower.eval()
    given = np.load(inputs)
    images = (given["images"] / np.float32(255) - given["mean"]) / given["std"]
    with torch.no_grad():
        np.savez(out, features=tower(torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous()).numpy())


def bert(folder: pathlib.Path) -> None:
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=90, max_position_embeddings=24, hidden_dropout_prob=0.1, **sizes)
    )
    with torch.no_grad():
        # So that no bias and no gain is without effect.
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def states(folder: str, rows: list[list[int]], out: str) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        np.savez(out, states=model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy())


def main(command: str, *rest: str) -> None:
    torch.manual_seed(0)
    if command == "make":
        make(rest[0], pathlib.Path(rest[1]))
    elif command == "embed":
        embed(rest[0], rest[1], json.loads(pathlib.Path(rest[2]).read_text()), rest[3])
    elif command == "features":
        features(json.loads(rest[0]), *rest[1:])
    elif command == "bert":
        bert(pathlib.Path(rest[0]))
    elif command == "states":
        states(rest[0], json.loads(pathlib.Path(rest[1]).read_text()), rest[2])
    else:
        retrieve(rest[0], json.loads(pathlib.Path(rest[1]).read_text()), rest[2])


if __name__ == "__main__":
    main(*sys.argv[1:])
