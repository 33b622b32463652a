"""The encoder and the heads of the objectives in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarking.pytorch.edits import (
  crop,
  lengths,
  mask,
  random_slice,
  reorder,
)
from experiments.benchmarking.pytorch.losses import set_loss, unit


class Encoder(nn.Module):
  """The encoder with the fields of a `UserEncoder`."""

  def __init__(self, fields: dict[str, Any]):
    super().__init__()
    dim, rate = fields['embed_dim'], fields['dropout_rate']
    self.fields, self.mask_id = fields, fields['num_items'] + 1
    self.items = nn.Embedding(self.mask_id + 1, dim)
    self.positions = nn.Embedding(fields['max_length'], dim)
    self.norm = nn.LayerNorm(dim, eps=1e-12)
    self.dropout = nn.Dropout(rate)
    layer = nn.TransformerEncoderLayer(
      dim,
      fields['num_heads'],
      4 * dim,
      rate,
      'gelu',
      layer_norm_eps=1e-12,
      batch_first=True,
    )
    # Ours has no dropout between the two maps of the feed-forward layer.
    layer.dropout = nn.Identity()
    self.blocks = nn.TransformerEncoder(
      layer, fields['num_layers'], enable_nested_tensor=False
    )
    self.queries = nn.Parameter(torch.empty(fields['num_queries'], dim))
    for weight in self.parameters():
      if weight.dim() > 1:
        nn.init.normal_(weight, std=0.02)

  def states(self, items: Tensor, embedded: Tensor | None = None) -> Tensor:
    """The hidden states [rows, length, dim]; `embedded` replaces item rows."""
    hidden = self.items(items) if embedded is None else embedded
    hidden = hidden + self.positions.weight[: items.shape[1]]
    hidden = self.dropout(self.norm(hidden))
    if not self.fields['causal']:
      return self.blocks(hidden, src_key_padding_mask=items == 0)
    # Padding comes last, where no real item attends to it.
    mask = nn.Transformer.generate_square_subsequent_mask(items.shape[1])
    return self.blocks(hidden, mask=mask, is_causal=True)

  def forward(self, items: Tensor) -> Tensor:
    """The user vectors [rows, queries * dim], after cutting to the longest."""
    items = items[:, : int(lengths(items).max())]
    keys = hidden = self.states(items)
    queries = self.queries
    if self.fields['cosine_pooling']:
      queries, keys = unit(queries), unit(keys)
    scores = keys @ queries.T
    scores = scores.masked_fill((items == 0)[..., None], float('-inf'))
    return (scores.softmax(1).mT @ hidden).flatten(1)


class Model(nn.Module):
  """The encoder, and the heads that the objectives train with it."""

  def __init__(self, fields: dict[str, Any], max_window: int = 32):
    super().__init__()
    self.encoder = Encoder(fields)
    dim, wide = fields['embed_dim'], self.encoder.queries.numel()
    self.project = nn.Linear(wide, dim, False) if wide > dim else nn.Identity()
    self.bias = nn.Parameter(torch.zeros(self.encoder.mask_id))
    self.prompt = nn.Parameter(torch.zeros(max_window.bit_length(), wide))
    self.predictor = nn.Linear(wide, wide, bias=False)
    self.discriminator = Encoder(fields | {'num_items': 1, 'causal': False})
    self.condition = nn.Linear(wide, dim, bias=False)
    self.is_replaced = nn.Linear(dim, 1)

  def encode(self, *views: Tensor) -> Tensor:
    """The user vectors of views, [views, users, features]."""
    return self.encoder(torch.cat(views)).unflatten(0, (len(views), -1))

  def scores(self, vectors: Tensor, first: int = 0) -> Tensor:
    """The scores of all items from id `first` on; id 0 is padding."""
    rows = self.encoder.items.weight[first:-1]
    return functional.linear(vectors, rows, self.bias[first:])

  def set_loss(self, vectors: Tensor, items: Tensor, **options: bool) -> Tensor:
    """`set_loss` of the items that user vectors predict."""
    return set_loss(self.scores(self.project(vectors), 1), items, **options)

  def fill(self, items: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Replaces masked items by drawn predictions, and returns their loss."""
    masked = mask(items, self.encoder.mask_id, ratio)
    is_masked = masked == self.encoder.mask_id
    scores = self.scores(self.encoder.states(masked)[is_masked])
    shares = scores.detach()[:, 1:].softmax(1)
    drawn = 1 + torch.multinomial(shares, 1)[:, 0]
    loss = functional.cross_entropy(scores, items[is_masked])
    return items.masked_scatter(is_masked, drawn), loss

  def edited(self, items: Tensor) -> Tensor:
    """The users cropped, masked and reordered, [3, users, length]."""
    masked = mask(items, self.encoder.mask_id)
    return torch.stack([crop(items), masked, reorder(items)])

  def slices(self, items: Tensor) -> list[Tensor]:
    """Draws two slices of each user."""
    high = self.encoder.fields['max_length']
    return [random_slice(items, min(15, high), high) for _ in range(2)]
