"""Retrieval with ALBEF (Li et al. 2021, section 5): fine-tuned on images with several captions; batch 256, 10 epochs.

Needs --config.init_from=RUN of configs/albef.py, --config.data.train=SOURCE, --config.evals.retrieval.data=SOURCE and
--config.data.vocabulary=FOLDER of bert-base-uncased. An epoch of images has one caption of each: 50 of Flickr30k are
the paper's 10. COCO takes 25, with --config.method.distillation_steps=2214 and --config.evals.retrieval.k=256.
"""

from ml_collections import ConfigDict

from jaxclip import recipes


def get_config():
    config = recipes.albef_fine_tuning(1e-5, batch_size=256, epochs=50.0, init_only="^(?!words/)")
    config.method = ConfigDict(
        {
            "name": "albef",
            **recipes.albef(image_size=384, context_length=30),
            "embed_dim": 256,
            "mask_id": -1,
            "queue": 65_536,
            "momentum": 0.995,
            "temperature": 0.07,
            "distillation": 0.4,
            "distillation_steps": 566,
            "teacher_dropout": False,
            "negatives_among": 32,
            "positives": "record",
        }
    )
    config.evals = {"retrieval": recipes.evaluation("two_stage_retrieval", "", k=128)}
    return config
