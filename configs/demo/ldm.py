"""Untried (numbers follow)."""

from configs.common import ldm


def get_config():
    config = ldm()
    config.first_stage = "runs/demo/autoencoder"
    return config
