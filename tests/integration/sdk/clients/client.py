"""A worker on the published Python SDK, moved by commands on stdin: one JSON object per line.

Runs under every release of the SDK that the tests know, so it uses only what they have in common, and looks for the
rest. Answers and events are lines that begin with ``@``; whatever else the SDK prints is noise.
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
import traceback
import warnings

import iii
from iii.triggers import TriggerHandler

warnings.simplefilter("ignore", DeprecationWarning)  # 0.25 would have us use iii.observe

try:
    from iii.errors import InvocationError as SdkError  # 0.21 and later
except ImportError:
    from iii.errors import IIIInvocationError as SdkError

HAS_METADATA = "metadata" in inspect.getsource(iii.iii.III.trigger_async)

output = threading.Lock()


def say(message):
    with output:
        sys.stdout.write("@" + json.dumps(message) + "\n")
        sys.stdout.flush()


class Provider(TriggerHandler):
    """Remembers what is bound to a trigger type; refuses configs that say so."""

    def __init__(self, kind):
        self.kind = kind
        self.bound = {}

    async def register_trigger(self, config):
        if isinstance(config.config, dict) and config.config.get("refuse"):
            raise ValueError("refused")
        metadata = getattr(config, "metadata", None)
        self.bound[config.id] = (config.function_id, metadata)
        say(
            {
                "event": "bound",
                "type": self.kind,
                "function_id": config.function_id,
                "config": config.config,
                "metadata": metadata,
            }
        )

    async def unregister_trigger(self, config):
        function_id, _ = self.bound.pop(config.id, (None, None))
        say({"event": "unbound", "type": self.kind, "function_id": function_id})


class Client:
    def __init__(self, name):
        self.name = name
        self.worker = iii.register_worker(os.environ["III_URL"], iii.InitOptions(worker_name=name))
        self.functions = {}
        self.held = {}
        self.triggers = {}
        self.providers = {}

    def handler(self, behaviour, function_id, seconds):
        released = self.held[function_id] = threading.Event()

        async def run(data, metadata=None):
            if behaviour == "echo":
                return {"echo": data, "metadata": metadata}
            if behaviour == "none":
                return None
            if behaviour == "boom":
                raise ValueError("boom \N{COLLISION SYMBOL}")
            if behaviour == "who":
                return {"name": self.name, "pid": os.getpid()}
            if behaviour == "blob":
                return {"blob": "y" * data["size"]}
            if behaviour == "length":
                return {"length": len(data["blob"])}
            if behaviour == "nested":
                return {"nested": await self.worker.trigger_async(data["request"])}
            if behaviour == "record":
                say({"event": "invoked", "function_id": function_id, "data": data, "metadata": metadata})
                return None
            if behaviour == "slow":
                say({"event": "started", "function_id": function_id})
                await asyncio.sleep(seconds)
                return "late"
            if behaviour == "held":
                await asyncio.to_thread(released.wait)
                return "late"
            raise AssertionError(behaviour)

        async def run_without_metadata(data):
            return await run(data)

        return run if HAS_METADATA else run_without_metadata

    def function(self, function_id, behaviour, seconds=0, **options):
        handler = self.handler(behaviour, function_id, seconds)
        self.functions[function_id] = self.worker.register_function(function_id, handler, **options)

    def unregister(self, function_id):
        self.functions.pop(function_id).unregister()

    def release(self, function_id):
        self.held[function_id].set()

    def call(self, function_id, void=False, size=None, measure=False, **request):
        request["function_id"] = function_id
        if size is not None:
            request["payload"] = {"blob": "x" * size}
        request.setdefault("payload", None)
        if void:
            request["action"] = iii.TriggerAction.Void()
        result = self.worker.trigger(request)
        return len(result["blob"]) if measure else result

    def provide(self, type):
        self.providers[type] = Provider(type)
        self.worker.register_trigger_type({"id": type, "description": "a test's"}, self.providers[type])

    def fire(self, type, payload):
        for function_id, metadata in list(self.providers[type].bound.values()):
            request = {"function_id": function_id, "payload": payload, "action": iii.TriggerAction.Void()}
            if HAS_METADATA and metadata is not None:
                request["metadata"] = metadata
            self.worker.trigger(request)

    def bind(self, handle, **trigger):
        self.triggers[handle] = self.worker.register_trigger(trigger)

    def unbind(self, handle):
        self.triggers.pop(handle).unregister()

    def about(self):
        return {"has_metadata": HAS_METADATA, "pid": os.getpid()}

    def execute(self, command):
        number, op = command.pop("id"), command.pop("op")
        try:
            answer = {"ok": getattr(self, op)(**command)}
        except SdkError as error:
            answer = {
                "error": {
                    "sdk_error": True,
                    "type": type(error).__name__,
                    "code": error.code,
                    "message": error.message,
                    "function_id": error.function_id,
                    "stacktrace": error.stacktrace,
                }
            }
        except Exception as error:
            answer = {"error": {"sdk_error": False, "type": type(error).__name__, "message": traceback.format_exc()}}
        say({"id": number, **answer})


def main():
    client = Client(sys.argv[1])

    def terminate(*_):
        client.worker.shutdown()
        sys.exit(0)

    signal.signal(signal.SIGTERM, terminate)
    say({"event": "ready"})
    for line in sys.stdin:
        threading.Thread(target=client.execute, args=(json.loads(line),), daemon=True).start()
    client.worker.shutdown()


main()
