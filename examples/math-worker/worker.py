"""A worker with one function, `math::add`, written with the published iii-sdk."""

import signal
import threading
from typing import Any

from iii import InitOptions, register_worker


def add(data: dict[str, Any]) -> dict[str, Any]:
    """{"a": 2, "b": 3} → {"sum": 5}"""
    print(f"adding {data['a']} and {data['b']}", flush=True)
    return {"sum": data["a"] + data["b"]}


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    worker = register_worker(options=InitOptions(worker_name="math-worker"))  # the address comes from III_URL
    worker.register_function("math::add", add, description="Add two numbers")
    print("math-worker is connected", flush=True)
    stop.wait()
    worker.shutdown()


if __name__ == "__main__":
    main()
