"""What all experiments share. Untried by itself: every experiment file starts from here and changes the lines that matter."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of initial parameters, data order and all random draws
    config.data = dict(
        source=dict(name="digits"),
        transforms=(),
        variants=0,  # 0 draws the transforms of every image afresh; above, a record has so many variants, in turn from epoch to epoch
        fields=dict(),
        cache="",  # a folder made by python -m ldm_jax.cli.encode, to be read in the place of the images; may change when a run is resumed
        resolution=32,
        batch=64,
    )
    config.optimizer = dict(name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, decay="kernels")
    config.learning_rate = dict(name="cosine", peak=1e-3, warmup=50, steps=1000, end=0.0)  # warmup and steps count updates of the optimizer
    config.clip_norm = 1.0  # 0: off
    config.accumulate = 1  # steps whose gradients are averaged into one update
    config.ema = dict(decay=0.999)  # 0: off
    config.init_from = ""  # a run, a step of it, or a bundle to take the first parameters from
    config.run = dict(  # may change when a run is resumed
        steps=1000,
        log_every=50,
        evaluate_every=500,
        preview_every=500,
        preview_images=16,
        save_every=500,
        keep_last=2,
        keep_every=0,
        best=("", "min"),  # (metric, "min" or "max"): keep the best step too
        profile_steps=(0, 0),  # [first, last) steps to trace for the profiler
        reader_threads=2,
        mesh=dict(data=-1, fsdp=1, tensor=1, fsdp_threshold=65_536, rules=()),
    )
    return config


def autoencoder() -> ConfigDict:
    """Stage 1: an autoencoder with a KL bottleneck, no critic and no perceptual loss."""
    config = base()
    config.task = "autoencoder"
    config.model = dict(name="convolutional", width=64, multipliers=(1, 2, 2), blocks=1, attention=(), middle_attention=True,
                        latent_channels=4, dropout=0.0, dtype="float32", groups=-1, bottleneck=dict(name="kl"))
    config.loss = dict(pixel="l1", perceptual=0.0, perceptual_weights="", kl=1e-6, codebook=1.0)
    config.critic = dict(name="none")
    config.revival = dict(decay=0.99, threshold=0.0, every=50)
    config.latent_units = dict(images=1024)  # measured at each save
    return config


def ldm() -> ConfigDict:
    """Stage 2: a class-conditional U-Net on the latents of a first stage."""
    config = base()
    config.task = "diffusion"
    config.first_stage = ""  # a run, a step of it, or a bundle; "pixels" for none
    config.network = dict(name="unet", time_width=256, dropout=0.0, scale_shift=True, vector="projected", dtype="float32", groups=-1,
                          levels=(dict(width=64, blocks=2, attention="none", heads=1, depth=1, down="conv"),
                                  dict(width=128, blocks=2, attention="plain", heads=4, depth=1, down="none")))
    config.conditioner = dict(name="class", width=64, drop=0.1, into="vector")
    config.text_encoders = ""  # a folder of transformers with each text encoder, by commas, to take their first parameters from
    config.schedule = dict(name="scaled_linear", start=0.0015, end=0.0195, steps=1000)
    config.prediction = dict(name="v")
    config.time_input = dict(name="index")
    config.times = dict(name="uniform")
    config.weight = dict(name="simple")
    config.loss = dict(name="l2")
    config.log_variance = dict(name="none")
    config.offset_noise = 0.0  # 0: off
    config.lora = dict(rank=0, alpha=1.0, targets="attention")  # above rank 0 the LoRA alone is trained, on the base that init_from names
    config.sampling = dict(sampler=dict(name="dpmpp_2m"), grid=dict(name="trailing"), steps=25, guidance=2.0,
                           threshold=dict(name="none"))
    return config


def classifier() -> ConfigDict:
    """Stage 3: a classifier of noisy latents, to guide a diffusion model of the same first stage and schedule."""
    config = base()
    diffusion = ldm()
    config.task = "classifier"
    config.first_stage = diffusion.first_stage
    config.network = dict(name="unet_encoder", time_width=256, pooling="attention", pool_heads=4, dropout=0.0, scale_shift=True,
                          dtype="float32", groups=-1, levels=diffusion.network.levels)
    for section in ("schedule", "time_input", "times"):
        config[section] = diffusion[section]
    config.loss = dict(smoothing=0.0)
    config.optimizer.weight_decay = 0.05
    return config


def embedding() -> ConfigDict:
    """One space for images and their captions, by contrast (CLIP): what retrieval searches with."""
    config = base()
    config.task = "embedding"
    config.data.fields = dict(tokens=dict(name="captions", tokenizer=dict(name="bytes")))
    config.network = dict(name="clip", projection=512, temperature=0.07, dtype="float32",
                          image=dict(width=768, layers=12, heads=12, patch=32),
                          text=dict(width=512, layers=12, heads=8, vocabulary=259, length=77, bos=256, eos=257, pad=258))
    config.loss = dict(limit=100.0)
    config.optimizer.update(b2=0.98, eps=1e-6, weight_decay=0.2)
    return config
