"""Demo: a small CLIP on procedural scenes of colored shapes. Nothing to download; minutes on two CPU cores."""

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.batch_size = 128
    config.steps = 1200
    config.log_every = 10
    config.eval_every = 300
    config.checkpoint_every = 250
    config.data.train = "shapes"
    config.data.eval = "shapes:validation"
    config.data.train_vocabulary = 800
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.1
    config.method = recipes.clip(
        image_size=32, patch_size=8, width=128, layers=4, text_width=128, text_layers=2, embed_dim=128
    )
    config.method.image.scan = False
    config.method.text.scan = False
    config.method.text.vocab_size = 800
    config.method.text.context_length = 20
    templates = ("a {c}", "there is a {c}", "{c}")
    config.evals = {
        name: recipes.evaluation("zeroshot_classification", data, templates=templates)
        for name, data in (("shapes_seen", "shapes:seen"), ("shapes_unseen", "shapes:unseen"))
    }
    return config
