"""The processes of PgQueuer. The setting `fastest` is that of its pages on tuning: a larger batch, a pool for the
producer, its autovacuum settings, and uvloop, which its own command uses. The tables stay durable."""

import asyncio
import sys
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from roles import CONNECTIONS, Task, ready, say, told_to_end, until_told

# How many jobs a manager takes at a time in the setting `fastest`; the default is 10.
BATCH_SIZE = 100
# After how long without a heartbeat a job is taken again, and how often a manager without notices looks.
HEARTBEAT = timedelta(seconds=3)
LOOK = timedelta(seconds=1)


async def install(task: Task) -> None:
    connection = await asyncpg.connect(task.url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    if task.fastest:
        await queries.optimize_autovacuum()
    await connection.close()
    await ready()
    await told_to_end()


async def enqueue(task: Task) -> None:
    async with asyncpg.create_pool(task.url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        await ready()
        if task.part == "enqueue":
            await task.one_by_one(lambda number: queries.enqueue("job", str(number).encode()))
        else:
            for batch in task.batches():
                payloads = [str(number).encode() for number in batch]
                await queries.enqueue(["job"] * len(batch), payloads, [0] * len(batch))
        say("done")
        await told_to_end()


async def manager(task: Task) -> PgQueuer:
    """A manager with a connection of its own, as its page on tuning asks for."""
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(task.url)))

    @queuer.entrypoint("job")
    async def job(job: Job) -> None:
        await task.job()

    return queuer


async def work(task: Task) -> None:
    if task.fastest:
        managers = [await manager(task) for _ in range(CONNECTIONS)]
        options = {"batch_size": BATCH_SIZE, "heartbeat_timeout": HEARTBEAT, "dequeue_timeout": LOOK}
    else:
        managers, options = [await manager(task)], {}
    await ready()
    await until_told(
        asyncio.gather(*(one.run(**options) for one in managers)),
        stop=lambda: [one.shutdown.set() for one in managers],
    )


PARTS = {"install": install, "enqueue": enqueue, "enqueue_batches": enqueue, "work": work, "hold": work}
task = Task.of(sys.argv[1:])
if task.fastest:
    uvloop.run(PARTS[task.part](task))
else:
    asyncio.run(PARTS[task.part](task))
