"""For tests: the tensors of a CompVis or Stability file by name and shape, from the words of its yaml.

Written from how those constructors lay their lists out (openaimodel.py, attention.py, model.py of CompVis/latent-diffusion and
Stability-AI/stablediffusion), and from nothing of this package, so that a name table can be held against it.
"""


def layer(name, *weight, bias=True):
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def residual(name, into, out, time, scale_shift):
    return (layer(f"{name}.in_layers.0", into) | layer(f"{name}.in_layers.2", out, into, 3, 3)
            | layer(f"{name}.emb_layers.1", out * (2 if scale_shift else 1), time)
            | layer(f"{name}.out_layers.0", out) | layer(f"{name}.out_layers.3", out, out, 3, 3)
            | (layer(f"{name}.skip_connection", out, into, 1, 1) if into != out else {}))


def attention(name, width):
    return layer(f"{name}.norm", width) | layer(f"{name}.qkv", 3 * width, width, 1) | layer(f"{name}.proj_out", width, width, 1)


def transformer(name, width, context, depth, linear, disable_self_attn):
    ends = () if linear else (1, 1)
    found = layer(f"{name}.norm", width) | layer(f"{name}.proj_in", width, width, *ends) | layer(f"{name}.proj_out", width, width, *ends)
    for k in range(depth):
        block = f"{name}.transformer_blocks.{k}"
        for part, told in (("attn1", context if disable_self_attn else width), ("attn2", context)):
            found |= layer(f"{block}.{part}.to_q", width, width, bias=False) | layer(f"{block}.{part}.to_out.0", width, width)
            found |= layer(f"{block}.{part}.to_k", width, told, bias=False) | layer(f"{block}.{part}.to_v", width, told, bias=False)
        found |= layer(f"{block}.ff.net.0.proj", 8 * width, width) | layer(f"{block}.ff.net.2", width, 4 * width)
        for n in (1, 2, 3):
            found |= layer(f"{block}.norm{n}", width)
    return found


def unet(model_channels, channel_mult, attention_resolutions, in_channels, out_channels, num_res_blocks=2, context_dim=0,
         transformer_depth=1, use_linear=False, resblock_updown=False, use_scale_shift_norm=False, adm_in_channels=0,
         disable_self_attentions=()):
    """Without prefix. transformer_depth: one number, or one a level, whose last is the middle's."""
    mc, time, last = model_channels, 4 * model_channels, len(channel_mult) - 1
    depths = [transformer_depth] * (last + 1) if isinstance(transformer_depth, int) else transformer_depth
    disabled = disable_self_attentions or [False] * (last + 1)

    def attend(name, width, level, disable):
        if context_dim:
            return transformer(name, width, context_dim, depths[level], use_linear, disable)
        return attention(name, width)

    def resample(name, width, op):
        return residual(name, width, width, time, use_scale_shift_norm) if resblock_updown else layer(f"{name}.{op}", width, width, 3, 3)

    found = layer("time_embed.0", time, mc) | layer("time_embed.2", time, time) | layer("input_blocks.0.0", mc, in_channels, 3, 3)
    if adm_in_channels:
        found |= layer("label_emb.0.0", time, adm_in_channels) | layer("label_emb.0.2", time, time)
    width, skips, at = mc, [mc], 0
    for level, mult in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            at += 1
            found |= residual(f"input_blocks.{at}.0", width, mult * mc, time, use_scale_shift_norm)
            width = mult * mc
            if 2**level in attention_resolutions:
                found |= attend(f"input_blocks.{at}.1", width, level, disabled[level])
            skips.append(width)
        if level < last:
            at += 1
            found |= resample(f"input_blocks.{at}.0", width, "op")
            skips.append(width)
    found |= residual("middle_block.0", width, width, time, use_scale_shift_norm) | attend("middle_block.1", width, last, False)
    found |= residual("middle_block.2", width, width, time, use_scale_shift_norm)
    at = -1
    for level in range(last, -1, -1):
        for i in range(num_res_blocks + 1):
            at, child = at + 1, 1
            found |= residual(f"output_blocks.{at}.0", width + skips.pop(), channel_mult[level] * mc, time, use_scale_shift_norm)
            width = channel_mult[level] * mc
            if 2**level in attention_resolutions:
                found |= attend(f"output_blocks.{at}.{child}", width, level, disabled[level])
                child += 1
            if level and i == num_res_blocks:
                found |= resample(f"output_blocks.{at}.{child}", width, "conv")
    return found | layer("out.0", width) | layer("out.2", out_channels, mc, 3, 3)


def _pixel_block(name, into, out):
    return (layer(f"{name}.norm1", into) | layer(f"{name}.conv1", out, into, 3, 3) | layer(f"{name}.norm2", out)
            | layer(f"{name}.conv2", out, out, 3, 3) | (layer(f"{name}.nin_shortcut", out, into, 1, 1) if into != out else {}))


def _pixel_attention(name, width):
    found = layer(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        found |= layer(f"{name}.{part}", width, width, 1, 1)
    return found


def _half(half, way, start, levels, blocks, attn, attn_type, resample):
    """levels: [(number, side, width)] in the order of computation; blocks of each; all but the last are followed by `resample`."""
    found, width = {}, start
    middle = {} if attn_type == "none" else _pixel_attention(f"{half}.mid.attn_1", levels[-1 if way == "down" else 0][2])
    for number, side, out in levels:
        for j in range(blocks):
            found |= _pixel_block(f"{half}.{way}.{number}.block.{j}", width, out)
            width = out
            if side in attn and attn_type != "none":
                found |= _pixel_attention(f"{half}.{way}.{number}.attn.{j}", width)
        if number != levels[-1][0]:
            found |= layer(f"{half}.{way}.{number}.{resample}.conv", width, width, 3, 3)
    deepest = levels[-1 if way == "down" else 0][2]
    for n in (1, 2):
        found |= _pixel_block(f"{half}.mid.block_{n}", deepest, deepest)
    return found | middle | layer(f"{half}.norm_out", width)


def first_stage(ch, ch_mult, z_channels, embed_dim, n_embed=0, num_res_blocks=2, attn_resolutions=(), resolution=256,
                attn_type="vanilla", channels=3):
    """Without prefix; n_embed above 0 is a VQ model, otherwise double_z."""
    levels = [(i, resolution >> i, ch * mult) for i, mult in enumerate(ch_mult)]
    z, deepest = z_channels * (1 if n_embed else 2), levels[-1][2]
    found = _half("encoder", "down", ch, levels, num_res_blocks, attn_resolutions, attn_type, "downsample")
    found |= _half("decoder", "up", deepest, levels[::-1], num_res_blocks + 1, attn_resolutions, attn_type, "upsample")
    found |= layer("encoder.conv_in", ch, channels, 3, 3) | layer("encoder.conv_out", z, deepest, 3, 3)
    found |= layer("decoder.conv_in", deepest, z_channels, 3, 3) | layer("decoder.conv_out", channels, levels[0][2], 3, 3)
    found |= layer("quant_conv", embed_dim * (1 if n_embed else 2), z, 1, 1) | layer("post_quant_conv", z_channels, embed_dim, 1, 1)
    return found | ({"quantize.embedding.weight": (n_embed, embed_dim)} if n_embed else {})
