"""3,053 emoji with their names, retrieval on concepts never trained on: six minutes on two CPU cores.

--config.data.root=FOLDER names the folder with train-*.tar and val-00000.tar.
"""

from jaxclip import recipes


def get_config():
    config = recipes.base()
    config.batch_size = 128
    config.epochs = 38.0
    config.log_every = 20
    config.eval_every = 400
    config.checkpoint_every = 200
    config.data.train = "train-*.tar"
    config.data.eval = "val-00000.tar"
    config.data.train_vocabulary = 1500
    config.data.crop_scale = (0.8, 1.0)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.2
    config.method = recipes.clip(
        image_size=64, patch_size=8, width=128, layers=4, text_width=128, text_layers=2, embed_dim=128
    )
    config.method.image.scan = False
    config.method.image.patch_drop = 0.5
    config.method.text.scan = False
    config.method.text.vocab_size = 1500
    config.method.text.context_length = 20
    config.evals = {"emoji": recipes.evaluation("zeroshot_retrieval", "val-00000.tar")}
    return config
