"""The sandbox as a provider of batches, whose answers come evenly over the seconds that its argument says."""

import asyncio
import sys

from workers.sandbox.server import SandboxServer, serve


def _started(base_url: str) -> None:
    print(base_url, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(SandboxServer(latency="0", batches=f"delay={sys.argv[1]}"), started=_started))
