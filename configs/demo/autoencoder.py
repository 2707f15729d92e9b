"""Stage 1 of the demo: digits at f = 4, two latent channels, KL; a VQ bottleneck by one flag.

Result: held-out PSNR 36.4 dB, SSIM 0.993 (KL); 31.3 dB, 0.983, 99.8 % of the codes used (VQ, 512 codes).
300 steps, about 1.5 min on 2 CPU cores, 2026-11-20, jax 0.10.2.
Command: python train.py --config=configs/demo/autoencoder.py --workdir=runs/demo/autoencoder
"""

from configs.base import autoencoder


def get_config():
    config = autoencoder()
    config.model.update(width=16, multipliers=(1, 2, 4), blocks=1, middle_attention=False, latent_channels=2)
    config.data.batch = 32
    config.learning_rate.update(peak=2e-3, warmup=30, steps=300)
    config.ema.decay = 0.99
    config.revival.update(threshold=0.1, every=20)  # read with a VQ bottleneck only
    config.run.update(steps=300, log_every=50, evaluate_every=150, preview_every=150, save_every=150)
    return config
