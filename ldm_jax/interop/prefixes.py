"""How the tensors' names of each part begin in CompVis and Stability single files."""

NETWORK = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
CONDITIONER = "cond_stage_model."
EMBEDDERS = "conditioner.embedders."  # of Stability's files of several conditioners; a number follows
EMA = "model_ema."
TRACKED = "model."  # what LitEma averages: its names are those without this prefix and without any dot
PREFIXES = {"network": NETWORK, "first_stage": FIRST_STAGE}
