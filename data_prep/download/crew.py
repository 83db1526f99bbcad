"""Threads that fetch rows and make pictures of them, while the results are read in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from data_prep.download.fetch import Again, Fetcher, Task, located
from data_prep.download.outcome import Miss, MissError
from data_prep.download.picture import Picture, Target, fit
from data_prep.download.rows import Row
from data_prep.download.turns import Turns

LOOKAHEAD = 8192
"""Rows that may be begun before the first of them is done: at 200 a second, enough to wait out a
deadline of 30 s."""
_HELD_BYTES = 1 << 30
"""Of pictures that wait for one before them: where pictures are large, fewer rows are begun."""


@dataclass(frozen=True)
class Got:
    """What became of a row, after how many requests."""

    found: Picture | Miss
    requests: int = 0


Result = Future[Got]


class Crew:
    """`threads` threads; at most as many as there are CPUs decode at a time, which bounds memory
    and is no slower. A context: its end lets the threads go."""

    def __init__(self, fetcher: Fetcher, target: Target, threads: int) -> None:
        self.fetcher, self.target = fetcher, target
        self._turns: Turns[tuple[Task, Result]] = Turns(fetcher.limits.per_host)
        self._cpus = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))
        self._made_pictures = self._made_bytes = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._turns.close()

    def results(
        self, rows: Iterable[Row], skip: Callable[[Row], Miss | None]
    ) -> Iterator[tuple[Row, Got]]:
        """What became of every row, in their order. Rows that `skip` has a state for are not
        fetched."""
        begun: deque[tuple[Row, Result]] = deque()
        source, more = iter(rows), True
        while True:
            while more and len(begun) < self._window():
                row = next(source, None)
                if row is None:
                    more = False
                else:
                    begun.append((row, self._begin(row, skip(row))))
            if not begun:
                return
            row, result = begun.popleft()
            yield row, result.result()

    def _window(self) -> int:
        """Rows that may be under way."""
        with self._lock:
            if not self._made_pictures:
                return LOOKAHEAD
            size = self._made_bytes / self._made_pictures
        return int(min(LOOKAHEAD, max(_HELD_BYTES / size, 2 * len(self._threads))))

    def _begin(self, row: Row, known: Miss | None) -> Result:
        result: Result = Future()
        if known:
            result.set_result(Got(known))
            return result
        task = Task(row.number, row.url or "", self.fetcher.limits.deadline)
        self._put(task, result, 0.0)
        return result

    def _put(self, task: Task, result: Result, delay: float) -> None:
        try:
            host = str(located(task.url).host)
        except MissError as error:
            result.set_result(Got(error.miss, task.requests))
        else:
            self._turns.put(host, (task, result), delay=delay)

    def _work(self) -> None:
        while turn := self._turns.take():
            host, (task, result) = turn
            try:
                step = self._step(host, task)
                if isinstance(step, Again):
                    self._put(task, result, step.delay)
                    continue
                got = Got(step, task.requests) if isinstance(step, Miss) else self._made(step, task)
            # Whatever it is, it belongs to the one who reads the results.
            except BaseException as error:
                result.set_exception(error)
                continue
            result.set_result(got)

    def _step(self, host: str, task: Task) -> bytes | Again | Miss:
        try:
            return self.fetcher.step(task)
        finally:
            self._turns.done(host)

    def _made(self, data: bytes, task: Task) -> Got:
        try:
            with self._cpus:
                picture = fit(data, self.target)
        except MissError as error:
            return Got(error.miss, task.requests)
        with self._lock:
            self._made_pictures += 1
            self._made_bytes += len(picture.data)
        return Got(picture, task.requests)
