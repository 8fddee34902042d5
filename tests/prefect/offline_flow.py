"""A flow whose server cannot be reached while its tasks run. For a process of its own, because of Prefect's clients."""

from __future__ import annotations

import os
import threading

from tests.prefect.server_proxy import ServerProxy

TASKS = 20


def run_while_offline(server_port: int) -> list[str]:
    """Run the flow, and return the ids of its finished task runs."""
    with ServerProxy(server_port) as proxy:
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{proxy.port}/api"
        # Else Prefect keeps trying to send the log for a minute after the proxy has gone.
        os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        from prefect import flow, task

        from executor_adapter.prefect import JobTaskRunner

        @task
        def plain(x: int) -> int:
            return x + 1

        @flow(task_runner=JobTaskRunner(2, pool="thread"))
        def offline() -> list[str]:
            proxy.close()
            futures = [plain.submit(x) for x in range(TASKS)]
            assert [future.result() for future in futures] == list(range(1, TASKS + 1))
            threading.Timer(1.5, proxy.open).start()
            return [str(future.task_run_id) for future in futures]

        return offline()
