"""What the processes of the peers in Python have in common: see src/roles/mod.rs, which says the same in Rust."""

import asyncio
import dataclasses
import sys
from collections.abc import Awaitable, Callable, Iterator

# As many connections as podlock's pool.
CONNECTIONS = 4
# How many jobs one call puts into a queue.
BATCH = 1_000


@dataclasses.dataclass
class Task:
    """The command line of such a process."""

    part: str
    setting: str
    url: str
    jobs: int
    producers: int
    handled: int = 0

    @property
    def fastest(self) -> bool:
        return self.setting == "fastest"

    @classmethod
    def of(cls, words: list[str]) -> "Task":
        part, setting, url, jobs, producers = words
        return cls(part, setting, url, int(jobs), int(producers))

    async def job(self) -> None:
        """The job."""
        if self.part == "hold":
            say("began")
            await asyncio.Event().wait()
        self.handled += 1
        if self.handled == self.jobs:
            say("handled")

    async def one_by_one(self, enqueue: Callable[[int], Awaitable[object]]) -> None:
        """Calls `enqueue` for the numbers of all jobs, from so many tasks at a time."""
        numbers = iter(range(self.jobs))

        async def producer() -> None:
            for number in numbers:
                await enqueue(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.producers):
                group.create_task(producer())

    def batches(self) -> Iterator[range]:
        """The numbers of all jobs, in batches."""
        for first in range(0, self.jobs, BATCH):
            yield range(first, min(self.jobs, first + BATCH))


def say(word: str) -> None:
    """Tells the benchmark what has been reached."""
    print(word, flush=True)


async def ready() -> None:
    """Says that this process is ready, and waits until it may begin."""
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)


async def told_to_end() -> None:
    """Waits until this process is to end."""
    while await asyncio.to_thread(sys.stdin.readline):
        pass


async def until_told(running: Awaitable[None], stop: Callable[[], object] | None = None) -> None:
    """Lets a worker run until this process is to end. A worker that ends before is an error."""
    worker, told = asyncio.ensure_future(running), asyncio.ensure_future(told_to_end())
    await asyncio.wait({worker, told}, return_when=asyncio.FIRST_COMPLETED)
    if worker.done():
        raise RuntimeError("the worker ended by itself") from worker.exception()
    if stop is None:
        worker.cancel()
    else:
        stop()
    await asyncio.wait({worker})
