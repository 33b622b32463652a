"""Prints how long requests of 1, 8 and 64 users take, one after another.

python examples/serve/latency.py http://127.0.0.1:8000
"""

import statistics
import sys
import time

import httpx

LENGTH, REQUESTS = 100, 200


def milliseconds(client, users):
  """The time of each of several requests with the given number of users."""
  histories = [[f'{i} {user}' for i in range(LENGTH)] for user in range(users)]
  times = []
  for _ in range(REQUESTS):
    start = time.perf_counter()
    client.post('/vectors', json={'histories': histories}).raise_for_status()
    times.append(1000 * (time.perf_counter() - start))
  return times


if __name__ == '__main__':
  with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
    for users in (1, 8, 64):
      milliseconds(client, users)
      times = milliseconds(client, users)
      slow = statistics.quantiles(times, n=100)[98]
      print(
        f'{users} users: median {statistics.median(times):.1f} ms, '
        f'99th percentile {slow:.1f} ms'
      )
