"""Losses of user vectors and of item scores."""

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = float('-inf')


def unit(vectors: Tensor) -> Tensor:
  """Divides vectors by their length."""
  return functional.normalize(vectors, dim=-1)


def adaptssr_loss(users: Tensor) -> Tensor:
  """The AdaptSSR loss of vectors [2 views, 2 passes, users, features]."""
  first, second = unit(users)
  return (ranking_loss(first, second) + ranking_loss(second, first)) / 2


def ranking_loss(own: Tensor, others: Tensor) -> Tensor:
  """Ranks the other pass of a view above the other view above other users."""
  anchors, vectors = own[0], torch.cat([*own, *others])
  is_own = torch.eye(len(anchors), dtype=torch.bool).repeat(1, 4)
  negative = (anchors @ vectors.T).masked_fill(is_own, _LEAST).amax(1)
  implicit, explicit = (anchors * own[1]).sum(1), (anchors * others).sum(2)
  cosines = torch.einsum('pbd,qbd->pqb', own, others).detach()
  weight = 1 - cosines.clamp(min=0).mean((0, 1))
  first = weight * (implicit - explicit.amax(0))
  second = (1 - weight) * (explicit.amin(0) - negative)
  return -functional.logsigmoid(first + second).mean()


def nt_xent_loss(users: Tensor, temperature: float = 1.0) -> Tensor:
  """NT-Xent of vectors [2 views, users, features], by their dot products."""
  vectors = users.flatten(0, 1)
  itself = torch.eye(len(vectors), dtype=torch.bool)
  scores = (vectors @ vectors.T / temperature).masked_fill(itself, _LEAST)
  other_view = torch.arange(len(vectors)).roll(users.shape[1])
  return functional.cross_entropy(scores, other_view)


def coles_loss(users: Tensor, margin: float = 0.5, count: int = 5) -> Tensor:
  """The CoLES loss of vectors [2 slices, users, features]."""
  users = unit(users)
  vectors = users.flatten(0, 1)
  is_own = torch.eye(users.shape[1], dtype=torch.bool).repeat(2, 2)
  scores = (vectors @ vectors.T).masked_fill(is_own, _LEAST).detach()
  others = vectors[scores.topk(count, dim=1).indices]
  distances = (vectors[:, None] - others).norm(dim=2)
  pushed = functional.relu(margin - distances).square().sum()
  return ((users[0] - users[1]).square().sum() + pushed) / users.shape[1]


def set_loss(scores: Tensor, items: Tensor, repeats: bool = False) -> Tensor:
  """Cross entropy of the items [rows, k] by the scores of item 1 and above."""
  items = items.sort(1).values
  where = items != 0
  if not repeats:
    where &= items != functional.pad(items, (1, -1))
  own = scores.gather(1, (items - 1).clamp(min=0)) * where
  return (scores.logsumexp(1) - own.sum(1) / where.sum(1)).mean()


def candidates_loss(
  users: Tensor, candidates: Tensor, is_label: Tensor
) -> Tensor:
  """Cross entropy of the first candidate of each position among the others."""
  scores = torch.einsum('upd,upcd->upc', users, candidates)
  others = scores[..., 1:].masked_fill(is_label, _LEAST)
  losses = torch.cat([scores[..., :1], others], 2).logsumexp(2) - scores[..., 0]
  return losses[:, 0].mean() + losses[:, 1:].mean()
