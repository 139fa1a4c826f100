"""Questions about images with ALBEF (Li et al. 2021, section 5, VQA): fine-tuned; batch 256, 8 epochs of questions.

Needs --config.init_from=RUN of configs/albef.py, --config.data.train=SOURCE, such as VQA's
v2_OpenEnded_mscoco_train2014_questions.json, --config.evals.vqa.data=SOURCE, --config.evals.vqa.train=SOURCE of the
answers to choose from, and --config.data.vocabulary=FOLDER of bert-base-uncased. An epoch of images has one question of
each, and VQA's images have five.
"""

from ml_collections import ConfigDict

from jaxclip import recipes


def get_config():
    config = recipes.albef_fine_tuning(2e-5, batch_size=256, epochs=40.0, init_only="^(image|text|decoder|words)/")
    config.method = ConfigDict(
        {
            "name": "albef_vqa",
            **recipes.albef(image_size=384, context_length=30),
            "answer_length": 8,
            "answers": 4,
            "momentum": 0.995,
            "distillation": 0.4,
            "distillation_steps": 2500,
        }
    )
    config.evals = {"vqa": recipes.evaluation("question_answering", "", train="", answers=3192, k=128)}
    return config
