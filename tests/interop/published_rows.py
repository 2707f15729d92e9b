"""The published models typed by hand from their papers, model cards and configs: nothing here is taken from the
zoo, which is compared with it; what a row of the zoo is in the same words."""

VQ_F4, KL_F8 = ((1, 2, 4), (), 3, 8192, True), ((1, 2, 4, 4), (), 4, 0, True)
FIRST_STAGE_ROWS = {  # multipliers, pixels at which levels attend, latent channels, codes (0: KL), attention in the middle; scale factor
    "kl-f4": (((1, 2, 4), (), 3, 0, True), 1.0), "kl-f8": (KL_F8, 1.0), "kl-f16": (((1, 1, 2, 2, 4), (16,), 16, 0, True), 1.0),
    "kl-f32": (((1, 1, 2, 2, 4, 4), (16, 8), 64, 0, True), 1.0), "vq-f4": (VQ_F4, 1.0),
    "vq-f4-noattn": (((1, 2, 4), (), 3, 8192, False), 1.0), "vq-f8": (((1, 2, 2, 4), (32,), 4, 16384, True), 1.0),
    "vq-f8-n256": (((1, 2, 2, 4), (32,), 4, 256, True), 1.0), "vq-f16": (((1, 1, 2, 2, 4), (16,), 8, 16384, True), 1.0),
    "sd-vae": (KL_F8, 0.18215), "sdxl-vae": (KL_F8, 0.13025)}

MASKED = "inpainting mask masked hole 0.0"
CLIP_L = "clip 768x12, 12 heads, quick_gelu, pad 49407, layer -1 normed"
CLIP_H = "clip 1024x24, 16 heads, gelu, pad 0, layer -2 normed"
BIG_G = "clip 1280x32, 20 heads, gelu, pad 0, layer -2"
SDXL_TEXTS = f"clip 768x12, 12 heads, quick_gelu, pad 49407, layer -2 | {BIG_G} | untold zeros"
LDM, SD = (0.0015, 0.0195), (0.00085, 0.012)
WIDTH_32, WIDTH_64, EIGHT, ONE = "width 32", "width 64", "count 8", "count 1"
NETWORK_ROWS = {  # heads; ends of the betas; prediction; first stage, scale factor (0: in the file's buffer); side of images; told
    "celeba256": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "none"),
    "ffhq256": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "none"),
    "lsun-beds256": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "none"),
    "lsun-churches256": (EIGHT, (0.0015, 0.0155), "noise", "kl-f8", 0.0, 256, "none"),
    "cin256": (WIDTH_32, LDM, "noise", "vq-f8", 1.0, 256, "class 512 of 1000 rows, tokens"),
    "cin256-v2": (ONE, LDM, "noise", "vq-f4", 1.0, 256, "class 512 of 1001 rows, tokens"),
    "text2img256": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "bert 640x32, 8x64 heads, 30522 words, 77, tokens"),
    "text2img-large": (EIGHT, SD, "noise", "kl-f8", 0.18215, 256, "bert 1280x32, 8x64 heads, 30522 words, 77, tokens"),
    "layout2img": (WIDTH_32, (0.0015, 0.0205), "noise", "vq-f4", 1.0, 256, "bert 512x16, 8x64 heads, 8192 words, 92, boxes_tokens"),
    "semantic256": (EIGHT, (0.0015, 0.0205), "noise", "vq-f4", 1.0, 256, "map of 182 to 3, 2 halvings"),
    "semantic512": (EIGHT, (0.0015, 0.0205), "noise", "vq-f4", 1.0, 512, "map of 182 to 3, 2 halvings"),
    "bsr-sr": (WIDTH_32, (0.0015, 0.0155), "noise", "vq-f4", 1.0, 256, "low resolution"),
    "inpainting-big": (EIGHT, (0.0015, 0.0205), "noise", "vq-f4-noattn", 1.0, 256, "inpainting masked mask hole -1.0"),
    "rdm768": (WIDTH_32, (0.0015, 0.015), "noise", "kl-f16", 0.22765929, 768, "1 tokens of 768"),
    "rdm-imagenet": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "4 tokens of 512"),
    "rdm-ffhq": (WIDTH_32, LDM, "noise", "vq-f4", 1.0, 256, "4 tokens of 512"),
    "sd1": (EIGHT, SD, "noise", "kl-f8", 0.18215, 512, CLIP_L),
    "sd1-inpainting": (EIGHT, SD, "noise", "kl-f8", 0.18215, 512, f"{CLIP_L} + {MASKED}"),
    "sd2-base": (WIDTH_64, SD, "noise", "kl-f8", 0.18215, 512, CLIP_H),
    "sd2": (WIDTH_64, SD, "v", "kl-f8", 0.18215, 768, CLIP_H),
    "sd2-inpainting": (WIDTH_64, SD, "noise", "kl-f8", 0.18215, 512, f"{CLIP_H} + {MASKED}"),
    "sd2-depth": (WIDTH_64, SD, "noise", "kl-f8", 0.18215, 512, f"{CLIP_H} + depth"),
    "sd2-x4-upscaler": (EIGHT, (1e-4, 0.02), "v", "kl-f4 of 4", 0.08333, 512, f"{CLIP_H} + low resolution, 1000 levels"),
    "sdxl": (WIDTH_64, SD, "noise", "kl-f8", 0.13025, 1024, f"{SDXL_TEXTS} + 6 sizes of 256"),
    "sdxl-refiner": (WIDTH_64, SD, "noise", "kl-f8", 0.13025, 1024, f"{BIG_G}, pooled + 5 sizes of 256")}
STAGES = {kind: row for kind, (row, _) in FIRST_STAGE_ROWS.items()} | {"kl-f4 of 4": ((1, 2, 4), (), 4, 0, True)}
SAMPLING_ROWS = {  # sampler, steps, guidance, eta: where the reference has them
    "celeba256": ("ddim", 200, 1.0, 0.0), "ffhq256": ("ddim", 200, 1.0, 1.0), "lsun-beds256": ("ddim", 200, 1.0, 1.0),
    "lsun-churches256": ("ddim", 200, 1.0, 0.0), "cin256": ("ddim", 200, 1.0, 1.0), "cin256-v2": ("ddim", 20, 3.0, 0.0),
    "text2img256": ("ddim", 200, 5.0, 0.0), "text2img-large": ("ddim", 200, 5.0, 0.0), "layout2img": ("ddim", 200, 1.0, 0.0),
    "bsr-sr": ("ddim", 100, 1.0, 0.0), "inpainting-big": ("ddim", 50, 1.0, 0.0), "rdm-imagenet": ("ddim", 100, 2.0, 0.0),
    "sd1": ("plms", 50, 7.5, 0.0), "sdxl": ("euler", 50, 5.0, 0.0)}


def stage_of(section) -> tuple:
    """A first stage in the words of FIRST_STAGE_ROWS; all published ones have width 128, 2 blocks and no dropout."""
    assert (section["width"], section["blocks"], section["dropout"]) == (128, 2, 0.0)
    bottleneck = section["bottleneck"]
    return (section["multipliers"], section["attention"], section["latent_channels"],
            {"kl": 0}.get(bottleneck["name"], bottleneck.get("codes")), section["middle_attention"])


def heads_of(network) -> set[str]:
    """The rules that fit the heads of every attention of a network."""
    middle = dict(network["middle"], width=network["levels"][-1]["width"])
    attended = [spec for spec in (*network["levels"], middle) if spec["attention"] != "none"]
    return {rule for rule in (WIDTH_32, WIDTH_64, EIGHT, ONE)
            if all(spec["heads"] == (int(rule[5:]) if rule.startswith("count") else spec["width"] // int(rule[5:])) for spec in attended)}


def told(section, classes: int) -> str:
    """A conditioner in the words of NETWORK_ROWS."""
    name = section["name"]
    if name == "several":
        return " + ".join(told(part, classes) for part in section["parts"])
    if name == "clip_text":
        return _clip(section) + (f", {section['vector']}" if section.get("vector") else "")
    if name == "two_clip_text":
        return f"{_clip(section['first'])} | {_clip(section['second'])} | untold {section['untold']}"
    words = {
        "none": "none", "depth": "depth",
        "class": "class {width} of {rows} rows, {into}", "tokens": "{count} tokens of {width}", "sizes": "{count} sizes of {width}",
        "bert_text": "bert {width}x{layers}, {heads}x{head_width} heads, {vocabulary} words, {length}, {reads}",
        "semantic_map": "map of {classes} to {channels}, {halvings} halvings",
        "inpainting": "inpainting {order} hole {hole}",
        "low_resolution": "low resolution" + ", {levels} levels" * ("levels" in section),
    }[name]
    values = dict(rows=classes + (section.get("drop", 0) > 0), reads="tokens") | section
    return words.format(**values | {"order": " ".join(section.get("order", ()))})


def _clip(spec) -> str:
    return "clip {width}x{layers}, {heads} heads, {activation}, pad {pad}, layer -".format(**spec) + \
        f"{1 + spec.get('skip', 0)}{' normed' * spec.get('final_norm', True)}"
