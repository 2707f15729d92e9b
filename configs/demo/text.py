"""Text to image on the shapes world: captions by a tokenizer trained on them and a small BERT-like encoder, trained jointly. Untried.

Command: python train.py --config=configs/demo/text.py --workdir=runs/shapes/text --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional

VOCABULARY = 160


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(tokens=dict(name="captions", tokenizer=dict(name="trained", vocabulary=VOCABULARY, records=2000)))
    config.conditioner = dict(name="bert_text", width=96, layers=2, heads=4, head_width=24, vocabulary=VOCABULARY, length=24, bos=2, eos=3,
                              pad=0, logits=False, drop=0.1)
    config.network.levels = shapes_unconditional.levels("transformer")
    config.sampling.guidance = 2.0
    return config
