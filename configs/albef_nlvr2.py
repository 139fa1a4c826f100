"""Statements about two images with ALBEF (Li et al. 2021, section 5, NLVR2): fine-tuned; batch 128, 10 epochs.

Needs --config.init_from=RUN of configs/albef.py, --config.data.train=SOURCE, such as NLVR2's train.json,
--config.data.eval=SOURCE and --config.data.vocabulary=FOLDER of bert-base-uncased. The paper's text assignment before
it is the same recipe with --config.method.assigns_texts=True, --config.method.classes=3, images with captions and one
epoch. A pair of NLVR2's images has 1.7 statements, so that 17 epochs of pairs are the paper's 10.
"""

from ml_collections import ConfigDict

from jaxclip import recipes


def get_config():
    config = recipes.albef_fine_tuning(2e-5, batch_size=128, epochs=17.0, init_only="^(image|text|second)/")
    config.method = ConfigDict(
        {
            "name": "albef_nlvr2",
            **recipes.albef(image_size=384, context_length=30),
            "classes": 2,
            "assigns_texts": False,
            "among": 0,
            "momentum": 0.995,
            "distillation": 0.4,
            "distillation_steps": 675,
        }
    )
    return config
