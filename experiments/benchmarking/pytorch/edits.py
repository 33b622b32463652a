"""Edits of behaviour sequences, int64 [users, length] padded with 0."""

import torch
from torch import Tensor


def lengths(items: Tensor) -> Tensor:
  """The number of behaviours of each user."""
  return (items != 0).sum(1)


def draw(below: Tensor) -> Tensor:
  """Draws an integer in [0, below) for each user."""
  return (torch.rand(len(below)) * below).long()


def keep(items: Tensor, start: Tensor, size: Tensor) -> Tensor:
  """Moves a run of the behaviours to the front, and drops the others."""
  position = torch.arange(items.shape[1])
  index = position + start[:, None]
  real = (position < size[:, None]) & (index < items.shape[1])
  return items.gather(1, index.clamp(max=items.shape[1] - 1)) * real


def random_run(items: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
  """Draws a run with a share of the behaviours: its start and its size."""
  n = lengths(items)
  size = (ratio * n.double()).ceil().long()
  return draw(n - size + 1), size


def choose(among: Tensor, size: Tensor) -> Tensor:
  """Marks `size` of the allowed positions of each user at random."""
  draws = torch.rand(among.shape).masked_fill(~among, 2.0)
  return among & (draws.argsort(1).argsort(1) < size[:, None])


def crop(items: Tensor, ratio: float = 0.4) -> Tensor:
  """Keeps a random run."""
  return keep(items, *random_run(items, ratio))


def mask(items: Tensor, mask_id: int, ratio: float = 0.6) -> Tensor:
  """Masks a share of the behaviours, but never all of them."""
  n = lengths(items)
  size = torch.minimum((ratio * n.double()).ceil(), n - 1)
  return items.masked_fill(choose(items != 0, size), mask_id)


def reorder(items: Tensor, ratio: float = 0.6) -> Tensor:
  """Shuffles a random run."""
  start, size = (x[:, None] for x in random_run(items, ratio))
  position = torch.arange(items.shape[1]).expand_as(items)
  inside = (position >= start) & (position < start + size)
  order = torch.where(inside, start + size * torch.rand(items.shape), position)
  return items.gather(1, order.argsort(1))


def random_slice(items: Tensor, low: int, high: int) -> Tensor:
  """Keeps a random run of random length."""
  n = lengths(items)
  least, most = n.clamp(max=low), n.clamp(max=high)
  size = least + draw(most - least + 1)
  return keep(items, draw(n - size + 1), size)


def prefix_and_rest(items: Tensor, most: int) -> tuple[Tensor, Tensor]:
  """Cuts at a random position: the prefix, and up to `most` items after it."""
  n = lengths(items)
  cut = 1 + draw(n - 1)
  return keep(items, 0 * n, cut), keep(items, cut, n - cut)[:, :most]


def find_similar(items: Tensor, similar: Tensor) -> Tensor:
  """Draws an item that is similar to each behaviour; 0 if there is none."""
  found = similar[items]
  choice = (torch.rand(items.shape) * (found != 0).sum(2)).long()
  return found.gather(2, choice[..., None])[..., 0]


def substitute(items: Tensor, similar: Tensor, ratio: float = 0.1) -> Tensor:
  """Replaces a share of the behaviours by similar items."""
  found, size = find_similar(items, similar), (ratio * lengths(items)).ceil()
  return torch.where(choose(found != 0, size), found, items)


def insert(items: Tensor, similar: Tensor, ratio: float = 0.4) -> Tensor:
  """Inserts similar items before a share of the behaviours; keeps the last."""
  found, n, width = find_similar(items, similar), lengths(items), items.shape[1]
  fits = (torch.arange(width) > 0) | (n < width)[:, None]
  found = found * choose((found != 0) & fits, (ratio * n).ceil())
  pairs = torch.stack([found, items], 2).flatten(1)
  pairs = pairs.gather(1, (pairs == 0).int().argsort(dim=1, stable=True))
  start = (lengths(pairs) - width).clamp(min=0)
  return keep(pairs, start, torch.full_like(n, width))[:, :width]


def one_of(views: Tensor) -> Tensor:
  """Draws one of the views [views, users, length] for each user."""
  users = torch.arange(views.shape[1])
  return views[torch.randint(len(views), users.shape), users]


def two_of(views: Tensor) -> Tensor:
  """Draws two different views for each user."""
  choice = torch.rand(len(views), views.shape[1]).argsort(0)[:2]
  return views[choice, torch.arange(views.shape[1])]
