"""Visual entailment with ALBEF (Li et al. 2021, section 5, SNLI-VE): fine-tuned; batch 256, 5 epochs of sentences.

Needs --config.init_from=RUN of configs/albef.py, --config.data.train=SOURCE, such as snli_ve_train.jsonl,
--config.data.eval=SOURCE and --config.data.vocabulary=FOLDER of bert-base-uncased. An epoch of images has one sentence
of each, and SNLI-VE's images 18.
"""

from ml_collections import ConfigDict

from jaxclip import recipes


def get_config():
    config = recipes.albef_fine_tuning(2e-5, batch_size=256, epochs=90.0, init_only="^(image|text)/")
    config.method = ConfigDict(
        {
            "name": "albef_entailment",
            **recipes.albef(image_size=384, context_length=30),
            "classes": 3,
            "momentum": 0.995,
            "distillation": 0.4,
            "distillation_steps": 0,
        }
    )
    return config
