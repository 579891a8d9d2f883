"""Stands for a project's engine: the real control socket and record, with workers that are ordinary processes.

Usage: ``python enginedouble.py PROJECT``; prints a line once it serves, ends with its stdin. Its workers are those of
config.yaml: ``run*`` run, ``fail*`` have failed, ``slow*`` take three status calls to start, others are stopped.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from iii_core.control.server import Call, Operation, serve_control
from iii_core.errors import ProcessSpawnError, StartTimeout, WorkerNotInstalled, WorkerNotRunning
from iii_core.images.port import Progress
from iii_core.link.mux import Closed, Data, Eof, Message
from iii_core.project.config import load_config
from iii_core.project.edit import edit_config, not_in_config, put_worker, remove_worker
from iii_core.project.locate import Project, control_socket, locate_project, write_record

PORT = 50123


class Double:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.states: dict[str, str] = {}
        self.polls: dict[str, int] = {}

    def state(self, name: str) -> str:
        initial = {"run": "running", "fai": "failed", "slo": "booting"}.get(name[:3], "stopped")
        return self.states.get(name, initial)

    def row(self, name: str, kind: str) -> dict[str, Any]:
        state = self.state(name)
        running = state == "running"
        return {
            "name": name, "type": kind, "version": "1.2.3", "pid": os.getpid() if running else None, "status": state,
            "isolation": "namespaces" if running else None, "backend": "double" if running else None,
            "note": "it is\x1b[2Jbroken" if state == "failed" else None,
        }  # fmt: skip

    def require(self, name: str) -> None:
        known = [entry.name for entry in load_config(self.project).workers]
        if name not in known:
            raise not_in_config(name, known)

    async def list(self, call: Call) -> Any:
        external = {**self.row("running-elsewhere", "external"), "isolation": None, "version": None}
        return {
            "workers": [self.row(entry.name, entry.kind) for entry in load_config(self.project).workers],
            "external": [external],
        }

    async def status(self, call: Call) -> Any:
        name = call.args["name"]
        self.require(name)
        self.polls[name] = self.polls.get(name, 0) + 1
        if name.startswith("slow") and self.polls[name] > 3:
            self.states[name] = "running"
        return {
            **self.row(name, "oci"), "engine": {"listeners": [{"host": "127.0.0.1", "port": PORT}]},
            "config_path": str(self.project.config_path), "line": 2, "unenforced": ["memory"], "restarts": 2,
            "notes": [], "last_exit": "exit 3", "stdout_tail": ["tail of stdout"], "stderr_tail": [],
            "image": {"reference": "r/x:1", "digest": "sha256:0"}, "logs": str(self.project.logs_dir(name)),
            "error": {"code": "W113", "message": "it ended", "hint": "look"} if self.state(name) == "failed" else None,
        }  # fmt: skip

    async def start(self, call: Call) -> Any:
        name = call.args["name"]
        self.require(name)
        if name == "never" and call.args["wait"]:
            raise StartTimeout("worker 'never' is not ready after 120 s", hint="watch it")
        self.states[name] = "running"
        return self.row(name, "oci")

    async def stop(self, call: Call) -> Any:
        self.require(call.args["name"])
        self.states[call.args["name"]] = "stopped"
        return {"name": call.args["name"], "stopped": True}

    async def remove(self, call: Call) -> Any:
        rows = []
        for name in call.args["names"]:
            try:
                await trio.to_thread.run_sync(
                    edit_config, self.project, lambda text, name=name: remove_worker(text, name)
                )
                rows.append({"name": name, "removed": True, "lock_changed": name == "running"})
            except WorkerNotInstalled as error:
                said = {"code": error.code, "message": error.message, "hint": error.hint}
                rows.append({"name": name, "removed": False, "error": said})
        return {"workers": rows}

    async def add(self, call: Call) -> Any:
        source = call.args["sources"][0]
        if source == "bad":
            error = {"code": "W220", "message": "no such image", "hint": "check the name", "details": {}}
            return {"workers": [{"source": source, "error": error}]}
        for done in range(0, 3_000_001, 1_000_000):
            call.report(Progress(stage="downloading", item="layer 1", done=done, total=3_000_000))
            await trio.lowlevel.checkpoint()
        name = source.rpartition("/")[2].partition(":")[0]
        edited = await trio.to_thread.run_sync(
            edit_config, self.project, lambda text: put_worker(text, {"name": name, "image": source})
        )
        row = {
            "source": source, "name": name, "image": source, "digest": "sha256:0", "size": 7_300_000,
            "version": "1.0.0", "status": {"added": "installed"}.get(edited.action, "already_current"),
            "description": "Does it", "manifest": name != "plain",
            "ready": call.args["wait"] and name not in ("never", "broken"),
            "config": edited.action, "lock_changed": edited.action != "unchanged", "replaces": None,
        }  # fmt: skip
        if name == "never":
            row["not_ready"] = {"code": "W161", "message": "not ready after 120 s", "hint": "watch it"}
        if name == "broken":
            row["not_ready"] = {"code": "W242", "message": "cannot run '/bin/no'", "hint": "look inside"}
        return {"workers": [row]}

    async def exec(self, call: Call) -> Any:
        name = call.args["name"]
        self.require(name)
        if self.state(name) != "running":
            raise WorkerNotRunning(f"worker {name!r} is not running", hint=f"iii worker start {name}")
        return await run_process(call)


async def run_process(call: Call) -> Any:
    args, size = call.args, call.args["tty"]
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "start_new_session": True}
    master = -1
    if size:
        master, slave = os.openpty()
        resize(master, size["rows"], size["cols"])
        options |= {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": take_terminal}
    try:
        process = await trio.lowlevel.open_process(
            args["argv"], env={**os.environ, **args["env"]}, cwd=args["cwd"] or "/", **options
        )
    except OSError as error:
        raise ProcessSpawnError(f"cannot run {args['argv'][0]!r}", details={"errno": error.errno}) from error
    if size:
        os.close(slave)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(from_client, call, process, master)
            async with trio.open_nursery() as outputs:
                if size:
                    outputs.start_soon(from_terminal, call, master)
                else:
                    for channel, pipe_end in ((1, process.stdout), (2, process.stderr)):
                        outputs.start_soon(from_pipe, call, channel, pipe_end)
                await process.wait()
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
    code = process.returncode
    return {"exit_code": 128 - code if code < 0 else code}


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def resize(master: int, rows: int, columns: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def from_pipe(call: Call, channel: int, pipe: Any) -> None:
    async for data in pipe:
        await call.stream.send_data(channel, data)


async def from_terminal(call: Call, master: int) -> None:
    while True:
        try:
            data = await trio.to_thread.run_sync(os.read, master, 4096, abandon_on_cancel=True)
        except OSError:
            return
        await call.stream.send_data(1, data)


async def from_client(call: Call, process: Any, master: int) -> None:
    while True:
        match await call.stream.receive():
            case Data(data=data) if master >= 0:
                await trio.to_thread.run_sync(os.write, master, data)
            case Data(data=data):
                with suppress(trio.BrokenResourceError):
                    await process.stdin.send_all(data)
            case Eof():
                if master >= 0:
                    os.write(master, b"\x04")
                else:
                    await process.stdin.aclose()
            case Message(payload=payload):
                message = msgspec.json.decode(payload)
                if "signal" in message:
                    os.killpg(process.pid, message["signal"])
                else:
                    resize(master, *message["resize"])
            case Closed():
                os.killpg(process.pid, signal.SIGKILL)
                return


async def main(folder: str) -> None:
    project = locate_project(f"{folder}/config.yaml")
    double = Double(project)
    calls = {"list": double.list, "status": double.status, "start": double.start, "restart": double.start,
             "stop": double.stop, "remove": double.remove, "add": double.add}  # fmt: skip
    table = {f"worker.{name}": Operation(handle) for name, handle in calls.items()}
    table["worker.exec"] = Operation(double.exec, streaming=True)
    async with trio.open_nursery() as nursery:
        path = control_socket(project)
        await nursery.start(serve_control, path, table)
        write_record(project, control=path, port=PORT)
        print("serving", flush=True)
        await trio.to_thread.run_sync(partial(Path("/dev/stdin").read_bytes), abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
