"""Exits with 1 where a program on this machine says that it is not healthy: for containers and systemd.

    python -m executor_adapter.monitoring.probe [URL ...]

The default URLs are those of a worker that was started with `--with-healthcheck`, and of the process of its flow run,
see port.py. Where nobody listens, nothing is wrong: a worker has a flow run only now and then. It imports little, since
it runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

URLS = ("http://127.0.0.1:8080/health", "http://127.0.0.1:9464/live")
TIMEOUT_SECONDS = 15.0


def trouble_at(url: str) -> str | None:
    """Return what is wrong at this URL; None where it answers 200, or where nobody listens."""
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"{url}: HTTP {error.code}: {error.read(1000).decode(errors='replace').strip()}"
    except OSError as error:
        is_refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
        return None if is_refused else f"{url}: {error}"
    return None


if __name__ == "__main__":
    troubles = [trouble for url in sys.argv[1:] or URLS if (trouble := trouble_at(url))]
    sys.exit("\n".join(troubles) or 0)
