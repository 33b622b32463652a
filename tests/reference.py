"""The slow oracle: loops over the paper's formulas in float64 numpy."""

import math

import numpy as np


def log_sigmoid(x):
  return -math.log1p(math.exp(-x))


def cosine(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def mpr(implicit, explicit, negative, weight, hard_negatives=True):
  """One anchor: lists of similarities in, a number out."""
  negative = [n for n in negative if n != -math.inf]
  if hard_negatives:
    margin = weight * (min(implicit) - max(explicit))
    if negative:
      margin += (1 - weight) * (min(explicit) - max(negative))
    return -log_sigmoid(margin)
  terms = []
  for p in implicit:
    for e in explicit:
      if not negative:
        terms.append(-log_sigmoid(weight * (p - e)))
      for n in negative:
        margin = weight * (p - e) + (1 - weight) * (e - n)
        terms.append(-log_sigmoid(margin))
  return sum(terms) / len(terms)


def adaptive_weight(users, i):
  """lambda_i of the paper."""
  total = 0.0
  for first in (0, 1):
    for second in (0, 1):
      total += max(cosine(users[0][first][i], users[1][second][i]), 0.0)
  return 1 - total / 4


def batch_mean_weight(users, kept):
  """The published code's scalar for the anchors users[0][0]."""
  cosines = [
    cosine(users[0][0][i], users[1][k][i]) for i in kept for k in (0, 1)
  ]
  return 1 - sum(cosines) / len(cosines)


def adaptssr(users, fusion='adaptive', hard_negatives=True, where=None):
  """The loss of each user that counts, in order."""
  users = np.asarray(users, np.float64)
  where = np.ones(users.shape[2], bool) if where is None else where
  kept = [i for i in range(users.shape[2]) if where[i]]
  losses = []
  for i in kept:
    total = 0.0
    for views in (users, users[::-1]):
      anchor = views[0][0][i]
      if fusion == 'adaptive':
        weight = adaptive_weight(views, i)
      elif fusion == 'batch_mean':
        weight = batch_mean_weight(views, kept)
      else:
        weight = fusion
      negative = [
        cosine(anchor, views[v][p][j])
        for v in (0, 1)
        for p in (0, 1)
        for j in kept
        if j != i
      ]
      total += mpr(
        [cosine(anchor, views[0][1][i])],
        [cosine(anchor, views[1][p][i]) for p in (0, 1)],
        negative,
        weight,
        hard_negatives,
      )
    losses.append(total / 2)
  return np.array(losses)
