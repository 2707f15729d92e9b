"""An embedder of pictures and captions of the shapes, which retrieval (configs/demo/retrieval.py) and variations search with.

Result: of 128 held-out pictures and captions, 60 % find their own, both ways meaned. Of the four nearest training pictures of a held-out
one, 97 % have as many things, 32 % the same shapes and colours (51 % where there is one thing; by chance 1 %).
600 steps, 31 min on 2 CPU cores that much other work shared, 2026-11-20, jax 0.10.2.
Command: python train.py --config=configs/demo/embedding.py --workdir=runs/shapes/embedding
"""

from configs.base import embedding


def get_config():
    config = embedding()
    config.data.update(source=dict(name="shapes", resolution=32, records=0, world=0), resolution=32, batch=128)
    config.data.fields = dict(tokens=dict(name="captions", tokenizer=dict(name="trained", vocabulary=128, records=2000)))
    config.network = dict(name="clip", projection=32, temperature=0.07, dtype="float32",
                          image=dict(width=64, layers=2, heads=4, patch=8),
                          text=dict(width=64, layers=2, heads=4, vocabulary=128, length=24, bos=2, eos=3, pad=0))
    config.learning_rate.update(peak=2e-3, warmup=50, steps=600)
    config.optimizer.weight_decay = 0.05
    config.ema.decay = 0.99
    config.run.update(steps=600, log_every=100, evaluate_every=300, preview_every=0, save_every=300)
    return config
