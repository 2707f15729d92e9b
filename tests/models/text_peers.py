"""OpenCLIP's encoders and x-transformers' Encoder restated in torch with their own parameter names, for parity tests."""

from collections import OrderedDict

import torch
from torch import nn


class ClipBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width)))

    def forward(self, x, mask=None):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def _transformer(width, heads, layers):
    transformer = nn.Module()
    transformer.resblocks = nn.ModuleList(ClipBlock(width, heads) for _ in range(layers))
    return transformer


class OpenClipText(nn.Module):
    """States of every layer, and the pooled vector (the highest id ends the text)."""

    def __init__(self, width, heads, layers, vocabulary, length, projection):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.transformer = _transformer(width, heads, layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, projection))

    def forward(self, ids):
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu_(1)
        states = [self.token_embedding(ids) + self.positional_embedding]
        for block in self.transformer.resblocks:
            states.append(block(states[-1], mask))
        end = self.ln_final(states[-1])[torch.arange(len(ids)), ids.argmax(-1)]
        return states, end @ self.text_projection


class OpenClipVisual(nn.Module):
    def __init__(self, width, heads, layers, side, patch, projection):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _transformer(width, heads, layers)
        self.proj = nn.Parameter(torch.zeros(width, projection))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class _Attention(nn.Module):
    def __init__(self, width, heads, head_width):
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(inner, width)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class XTransformer(nn.Module):
    """TransformerWrapper(Encoder) as LDM's BERTEmbedder calls it: embeddings, not logits."""

    def __init__(self, width, layers, heads, head_width, vocabulary, length):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(vocabulary, width), nn.Module()
        self.pos_emb.emb = nn.Embedding(length, width)
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), _FeedForward(width) if i % 2 else _Attention(width, heads, head_width)])
            for i in range(2 * layers))
        self.norm, self.to_logits = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.token_emb(ids) + self.pos_emb.emb(torch.arange(ids.shape[1]))
        for norm, part in self.attn_layers.layers:
            x = x + part(norm(x))
        return self.norm(x)
