"""Configs of times that remember and of a learned log-variance. That such a run resumes bit for bit is in tests/test_resume.py."""

import pytest

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.core.errors import UserError

FACTS = choices.Facts(channels=1, resolution=32, classes=10)


@pytest.mark.parametrize("changes, told", [
    ({"times": {"name": "importance", "bins": 7}}, "config.times: importance times: bins=7: expected a divisor of the 1000"),
    ({"times": {"name": "log_normal", "mean": -20.0}}, "config.times: log_normal times: mean=-20.0: expected a number between"),
    ({"times": {"name": "stratified", "strata": 3}}, "config.times: stratified times: a batch of 8 is not a multiple of strata=3"),
    ({"log_variance": {"name": "learned"}, "weight": {"name": "min_snr"}, "schedule": {"name": "flow"}},
     "config.weight: min_snr: the weight is 0 at time 1 of this schedule"),
    ({"log_variance": {"name": "learned", "bins": 3}}, "config.log_variance: learned log-variance: bins=3"),
    ({"log_variance": {"name": "lerned"}}, "config.log_variance.name='lerned': expected one of learned, none"),
    ({"time_input": {"name": "log_snr"}, "schedule": {"name": "flow"}}, "config.time_input: this schedule ends in pure noise"),
    ({"prediction": {"name": "edm"}, "schedule": {"name": "cosine", "zero_terminal": True}}, "config.prediction: this schedule ends in"),
    ({"weight": {"name": "elbo", "gamma": 5.0}}, "config.weight.gamma: 'elbo' does not take gamma"),
    ({"lora.rank": -1}, "config.lora: rank=-1, alpha=1.0: expected a rank of 0 (off) or above"),
    ({"lora.rank": 2, "lora.targets": "atention"}, "config.lora: targets='atention': expected one of attention"),
    ({"offset_noise": -0.1}, "config.offset_noise=-0.1: expected a number of 0"),
])
def test_what_cannot_work_is_one_line(make_ldm_config, changes, told):
    """Catches choices that fit alone but not together, met as NaN, as a bias or as a traceback in training."""
    with pytest.raises(UserError) as error:
        ex.build(make_ldm_config("pixels", **changes), FACTS)
    assert [line for line in str(error.value).splitlines() if line.startswith(told)], str(error.value)


def test_a_model_saved_before_there_was_a_choice_still_opens(make_ldm_config):
    """Catches a KeyError for the manifests of older runs, and a training config without the keys that passes in silence."""
    config = make_ldm_config("pixels")
    old = {key: value for key, value in config.items() if key not in ("log_variance", "offset_noise", "lora")}
    assert ex.build(old, FACTS).objective == ex.build(config, FACTS).objective and ex.build(old, FACTS).lora is None
    with pytest.raises(UserError, match="needs log_variance, offset_noise, lora"):
        ex.check_keys(old)
