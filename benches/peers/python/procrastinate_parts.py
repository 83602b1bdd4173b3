"""The processes of procrastinate. In the setting `fastest` a worker has 30 jobs at a time, and the periodic task of its
page on stalled jobs, each second."""

from procrastinate import App, PsycopgConnector

from roles import CONNECTIONS, Task, ready, say, told_to_end, until_told

# How many jobs a worker has at a time in the setting `fastest`; the default is 1.
CONCURRENCY = 30
# A worker is stalled after three heartbeats that did not come.
HEARTBEAT_SECONDS = 1
STALLED_SECONDS = 3


def app_of(task: Task) -> App:
    app = App(connector=PsycopgConnector(conninfo=task.url, min_size=CONNECTIONS, max_size=CONNECTIONS))

    @app.task(name="job")
    async def job(number: int) -> None:
        await task.job()

    if task.fastest:

        @app.periodic(cron="* * * * * */1")
        @app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs", pass_context=True)
        async def retry_stalled_jobs(context: object, timestamp: int) -> None:
            for stalled in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_SECONDS):
                await app.job_manager.retry_job(stalled)

    return app


async def main(task: Task) -> None:
    app = app_of(task)
    async with app.open_async():
        if task.part == "install":
            await app.schema_manager.apply_schema_async()
            await ready()
            await told_to_end()
        elif task.part == "enqueue":
            deferrer = app.tasks["job"].configure()
            await ready()
            await task.one_by_one(lambda number: deferrer.defer_async(number=number))
            say("done")
            await told_to_end()
        elif task.part == "enqueue_batches":
            deferrer = app.tasks["job"].configure()
            await ready()
            for batch in task.batches():
                await deferrer.batch_defer_async(*({"number": number} for number in batch))
            say("done")
            await told_to_end()
        else:
            options = {"install_signal_handlers": False}
            if task.fastest:
                options |= {
                    "concurrency": CONCURRENCY,
                    "update_heartbeat_interval": HEARTBEAT_SECONDS,
                    "stalled_worker_timeout": STALLED_SECONDS,
                }
            await ready()
            await until_told(app.run_worker_async(**options))
