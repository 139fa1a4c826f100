"""CIFAR-10 photographs captioned by their class names, zero-shot on held-out ones: ten minutes on two CPU cores.

--config.data.root=FOLDER names the folder with train-*.tar, val-00000.tar and classes.json.
"""

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.batch_size = 64
    config.epochs = 11.0
    config.eval_every = 800
    config.checkpoint_every = 200
    config.log_every = 20
    config.data.train = "train-*.tar"
    config.data.eval = "val-00000.tar"
    config.data.train_vocabulary = 600
    config.data.caption_templates = ("a photo of a {c}.", "a picture of the {c}.", "a blurry photo of a {c}.", "{c}")
    config.data.crop_scale = (0.8, 1.0)
    config.data.flip = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.1
    config.method = recipes.clip(
        image_size=32, patch_size=4, width=128, layers=4, text_width=128, text_layers=1, embed_dim=128
    )
    config.method.image.scan = False
    config.method.image.patch_drop = 0.5
    config.method.text.scan = False
    config.method.text.vocab_size = 600
    config.method.text.context_length = 12
    templates = ("a photo of a {c}.", "a picture of the {c}.")
    config.evals = {
        "cifar10": recipes.evaluation(
            "zeroshot_classification", "val-00000.tar", classes="classes.json", templates=templates
        )
    }
    return config
