"""Features of users, from vectors and from the items in their histories.

They need no labels, so they are computed once for all users of a data set,
labelled or not.
"""

from typing import Any

import numpy as np

from adaptssr_jax.data import Ragged

# An array [rows, dim], or a sparse matrix [rows, columns].
Features = Any
# The number of histories that are padded at a time.
_BLOCK = 1024


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

  users, items = [], []
  for start in range(0, len(histories), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(histories)))
    longest = max(int(histories.lengths_of(rows).max()), 1)
    padded = histories.padded(rows, min(longest, max_length or longest))
    row, position = np.nonzero(padded)
    users.append(row + start)
    items.append(padded[row, position])
  if not users:
    return sparse.csr_matrix((0, num_items + 1))
  found = np.concatenate(users), np.concatenate(items)
  shape = len(histories), num_items + 1
  bag = sparse.csr_matrix((np.ones(len(found[0])), found), shape)
  # Repeated items were added up.
  bag.data[:] = 1
  return bag


def tf_idf(bag: Features, *, rows: np.ndarray | None = None) -> Features:
  """Bags in which rarer items weigh more, with rows of unit length.

  b_i = x_i (1 + log((1 + n) / (1 + n_i))), divided by the length of b

  Args:
    bag: binary, sparse [users, columns].
    rows: the users among whom frequencies are counted: n users, n_i of whom
      have item i [all].

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
  return weigh.fit(bag if rows is None else bag[rows]).transform(bag)


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


def joined(
  vectors: np.ndarray, bag: Features, train: np.ndarray, *, weight: float
) -> Features:
  """Vectors and bags of items, concatenated.

  x = [z, weight sqrt(dim) b],  z the standardised vector, b the bag

  Since z has about the length sqrt(dim), and b has length 1, both parts have
  about the same length if the weight is 1.

  Args:
    bag: of all rows, of unit length, sparse [rows, columns].
    train: the rows over which vectors are standardised.
  """
  from scipy import sparse

  vectors = standardised(vectors, train)
  scale = weight * np.sqrt(vectors.shape[1])
  parts = [sparse.csr_matrix(vectors), (bag * scale).astype(np.float32)]
  return sparse.hstack(parts, format='csr')


def standardised(features: Features, train: np.ndarray) -> Features:
  """Columns of mean 0 and variance 1 over the training rows, in float32.

  A column that is constant over them becomes 0. Sparse features stay unchanged.
  """
  if not isinstance(features, np.ndarray):
    return features.astype(np.float32)
  mean, shrink = moments(features, train)
  return ((features - mean) * shrink).astype(np.float32)


def moments(
  features: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The mean of each column, and 1 / its standard deviation: [dim], [dim].

  The latter is 0 for a column that is constant over the training rows.
  """
  of_train = features[train].astype(np.float64)
  scale = of_train.std(axis=0)
  # A smaller deviation is rounding; dividing by it would turn it into noise.
  varies = scale > 1e-6 * np.abs(of_train).max(axis=0, initial=0)
  return of_train.mean(axis=0), varies / np.where(varies, scale, 1)
