# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work on items in several threads, with the results in the order of the items."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, List, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, together: int = 1
) -> Iterator[R]:
    """
    ``function(item)`` of each item, no more than a few of them ahead of the consumer.

    :param workers: threads; with 1 all is done in the caller's
    :param together: items that a thread is given at once; handing over takes a while
    """
    if workers <= 1:
        yield from map(function, items)
        return

    def of_part(part: List[T]) -> List[R]:
        return [function(item) for item in part]

    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting: Deque[Future[List[R]]] = deque()
        while True:
            part = list(itertools.islice(rest, together))
            if part:
                waiting.append(pool.submit(of_part, part))
            if len(waiting) > 2 * workers or (waiting and not part):
                yield from waiting.popleft().result()
            elif not part:
                return
