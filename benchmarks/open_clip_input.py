"""open_clip's part of input_speed.py, run by a Python with open_clip: prints images per second as JSON."""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import open_clip  # noqa: E402
import webdataset  # noqa: E402
from open_clip.transform import AugmentationCfg, image_transform  # noqa: E402


def main(shard: str, images: int, batch: int) -> None:
    transform = image_transform(224, is_train=True, aug_cfg=AugmentationCfg(scale=(0.9, 1.0)))
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    # open_clip's training pipeline (open_clip_train/data.py). Workers divide the shards among them, here one each.
    dataset = webdataset.DataPipeline(
        webdataset.SimpleShardList([shard, shard]),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg", text="txt"),
        webdataset.map_dict(image=transform, text=lambda text: tokenize(text)[0]),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(batch, partial=False),
    ).repeat()
    batches = iter(webdataset.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=2))
    for _ in range(4):  # start the workers and fill the queue
        next(batches)
    start_time = time.perf_counter()
    count = 0
    while count < images:
        count += len(next(batches)[0])
    print(json.dumps(count / (time.perf_counter() - start_time)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
