"""Which thread does which task next: never too many of one host at a time, and no thread waits
for a host or for time to pass while another task could be done."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter, defaultdict, deque
from typing import Generic, TypeVar

Task = TypeVar("Task")


class Turns(Generic[Task]):
    """A queue of tasks, each of one host.

    A thread takes a task, does it, and says that it is done with the host. Tasks come in the order
    in which they were put in, except where their host is busy or their time has not come.
    """

    def __init__(self, per_host: int) -> None:
        self.per_host = per_host
        self._changed = threading.Condition()
        self._ready: deque[tuple[str, Task]] = deque()
        self._waiting: defaultdict[str, deque[Task]] = defaultdict(deque)
        self._later: list[tuple[float, int, str, Task]] = []
        self._busy: Counter[str] = Counter()
        self._number = itertools.count()
        self._closed = False

    def put(self, host: str, task: Task, *, delay: float = 0.0) -> None:
        """Add a task that may begin in `delay` seconds."""
        with self._changed:
            if delay > 0:
                due = time.monotonic() + delay
                heapq.heappush(self._later, (due, next(self._number), host, task))
            else:
                self._ready.append((host, task))
            self._changed.notify()

    def take(self) -> tuple[str, Task] | None:
        """Wait for a task whose host is free; None when closed."""
        with self._changed:
            while not self._closed:
                self._wake()
                while self._ready:
                    host, task = self._ready.popleft()
                    if self._busy[host] < self.per_host:
                        self._busy[host] += 1
                        return host, task
                    self._waiting[host].append(task)
                self._changed.wait(self._until_next())
        return None

    def done(self, host: str) -> None:
        """Give back the turn that `take` gave."""
        with self._changed:
            self._busy[host] -= 1
            if waiting := self._waiting.get(host):
                self._ready.appendleft((host, waiting.popleft()))
                self._changed.notify()
            else:
                self._waiting.pop(host, None)
            if not self._busy[host]:
                del self._busy[host]

    def close(self) -> None:
        """Let every thread go; what has not been taken is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, host, task = heapq.heappop(self._later)
            self._ready.append((host, task))

    def _until_next(self) -> float | None:
        return max(self._later[0][0] - time.monotonic(), 0.0) if self._later else None
