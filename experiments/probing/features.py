"""Features of users, from vectors and from the items in their histories.

They need no labels, so they are computed once for all users of a data set,
labelled or not.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptssr_jax.data import Ragged

# An array [rows, dim], or a sparse matrix [rows, columns].
Features = Any
# The features of the users of 'train', 'validation' and 'test'.
BySplit = Mapping[str, Features]


def bags(histories: Ragged, num_items: int, *, max_length: int = 0) -> Features:
  """The sets of items in the histories of users, as binary vectors.

  Args:
    histories: item numbers from 1, the oldest first.
    max_length: the number of last behaviours that are used; 0: all.

  Returns:
    Sparse [users, num_items + 1], 1 for items in the history; column 0 is
    padding.

  Example:
    >>> histories = Ragged.from_rows([[3, 1, 3], []])
    >>> bags(histories, 3).toarray()
    array([[0., 1., 0., 1.],
           [0., 0., 0., 0.]])
    >>> bags(histories, 3, max_length=1).toarray()[0]
    array([0., 0., 0., 1.])
  """
  from scipy import sparse

  begin, end = histories.offsets[[0, -1]]
  items, lengths = histories.values[begin:end], histories.lengths
  row = np.repeat(np.arange(len(histories)), lengths)
  if max_length:
    # How many behaviours are left in the history, this one included.
    left = np.repeat(histories.offsets[1:], lengths) - np.arange(begin, end)
    row, items = row[left <= max_length], items[left <= max_length]
  shape = len(histories), num_items + 1
  bag = sparse.csr_matrix((np.ones(len(items)), (row, items)), shape)
  # Repeated items were added up.
  bag.data[:] = 1
  return bag


def tf_idf(bag: Features, *, counted: Features | None = None) -> Features:
  """Bags in which rarer items weigh more, with rows of unit length.

  b_i = x_i (1 + log((1 + n) / (1 + n_i))), divided by the length of b

  Args:
    bag: binary, sparse [users, columns].
    counted: the bags of the users among whom frequencies are counted: n users,
      n_i of whom have item i [those of `bag`].

  Returns:
    Sparse [users, columns]. The row of a user without items is 0.

  Example:
    >>> from scipy import sparse
    >>> bag = sparse.csr_matrix([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> tf_idf(bag).toarray().round(3)
    array([[0.509, 0.861],
           [1.   , 0.   ],
           [1.   , 0.   ]])
  """
  import sklearn.feature_extraction.text

  weigh = sklearn.feature_extraction.text.TfidfTransformer()
  return weigh.fit(bag if counted is None else counted).transform(bag)


def bag_svd(bag: Features, *, num_components: int) -> np.ndarray:
  """Features of bags by a truncated SVD.

  With B = U S V', the features are B V. On one machine, the same bags have
  bitwise the same features.

  Args:
    bag: sparse [users, columns].
    num_components: of the SVD; at most the number of users, and of columns.

  Returns:
    float32 [users, components].
  """
  import sklearn.decomposition
  import threadpoolctl

  svd = sklearn.decomposition.TruncatedSVD(
    min(num_components, *bag.shape), n_iter=7, random_state=0
  )
  with threadpoolctl.threadpool_limits(1):
    return svd.fit_transform(bag).astype(np.float32)


def joined(vectors: BySplit, bag: BySplit, *, weight: float) -> BySplit:
  """Vectors and bags of items, concatenated.

  x = [z, weight sqrt(dim) b],  z the standardised vector, b the bag

  Since z has about the length sqrt(dim), and b has length 1, both parts have
  about the same length if the weight is 1.

  Args:
    bag: of the same users, of unit length, sparse.
  """
  from scipy import sparse

  found = {}
  for name, users in standardised(vectors).items():
    scale = weight * np.sqrt(users.shape[1])
    parts = [sparse.csr_matrix(users), (bag[name] * scale).astype(np.float32)]
    found[name] = sparse.hstack(parts, format='csr')
  return found


def standardised(features: BySplit) -> BySplit:
  """Columns of mean 0 and variance 1 over the training rows, in float32.

  A column that is constant over them becomes 0. Sparse features stay unchanged.
  """
  if not isinstance(features['train'], np.ndarray):
    return {name: rows.astype(np.float32) for name, rows in features.items()}
  mean, shrink = moments(features['train'])
  return {
    name: ((rows - mean) * shrink).astype(np.float32)
    for name, rows in features.items()
  }


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean of each column, and 1 / its standard deviation: [dim], [dim].

  The latter is 0 for a column that is constant.
  """
  features = features.astype(np.float64)
  scale = features.std(axis=0)
  # A smaller deviation is rounding; dividing by it would turn it into noise.
  varies = scale > 1e-6 * np.abs(features).max(axis=0, initial=0)
  return features.mean(axis=0), varies / np.where(varies, scale, 1)
