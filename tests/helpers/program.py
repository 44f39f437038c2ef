"""The program in a process of its own.

Python takes seconds to import torch and transformers. So the processes are forked from one server that has imported
them and done nothing else; each has its own memory, environment, working folder, standard streams and exit code.
`fresh=True` starts the interpreter itself.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import ROOT

EDITS = ROOT / "requests" / "world.jsonl"
FEW = [
    "--set",
    "polish.steps=0",
    "--set",
    "target.steps=10",
    "--set",
    "moments.tokens=4000",
    "--set",
    "contexts.openings=[The]",
]
"""Settings for a short run."""
IMPORTED = ("memedit.api", "memedit.cli.app", "transformers.models.gpt2.modeling_gpt2")
"""What the server imports before it forks."""


def start(cache: Path, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` on one thread, with this cache folder."""
    return _run(command, {"MEMEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}, stdin)


def memedit(
    *arguments: object, cache: Path, stdin: str | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a memedit command."""
    command, environment = ("-m", "memedit", *map(str, arguments)), {"MEMEDIT_CACHE": str(cache)}
    if not fresh:
        return _run(command, environment, stdin)
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False, input=stdin,
    )  # fmt: skip


def memedit_ranks(world: int, *arguments: object, cache: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a memedit command in `world` processes, as torchrun does; returns what each of them did, by rank."""
    command, port = ("-m", "memedit", *map(str, arguments)), free_port()
    with TemporaryDirectory() as folder:
        running = [
            _started(
                command,
                {"MEMEDIT_CACHE": str(cache), **rank_environment(rank, world, port)},
                None,
                Path(folder, str(rank)),
            )
            for rank in range(world)
        ]
        return [_ended(command, *one) for one in running]


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process, on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in numbers.items()}}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def begin(*arguments: object, cache: Path, said: Path, fresh: bool = False) -> BaseProcess:
    """Start a memedit command and do not wait for it; the file `said` gets its standard error."""
    said.touch()
    streams = [Path(os.devnull), Path(os.devnull), said]
    command, environment = ("-m", "memedit", *map(str, arguments)), {**os.environ, "MEMEDIT_CACHE": str(cache)}
    return forked(_become, command, environment, streams, fresh)


def forked(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a function of a test module in a process forked from the server; what it sets is its own."""
    process = _server().Process(target=function, args=arguments)
    process.start()
    return process


def event() -> Event:
    """An event that a forked process can set."""
    return _server().Event()


def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _run(command: Sequence[str], environment: Mapping[str, str], stdin: str | None) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in a process forked from the server."""
    with TemporaryDirectory() as folder:
        return _ended(command, *_started(command, environment, stdin, Path(folder)))


def _started(
    command: Sequence[str], environment: Mapping[str, str], stdin: str | None, folder: Path
) -> tuple[BaseProcess, list[Path]]:
    """Start a process, with files in `folder` for its streams."""
    folder.mkdir(exist_ok=True)
    streams = [folder / name for name in ("stdin", "stdout", "stderr")]
    streams[0].write_text(stdin or "")
    for stream in streams[1:]:
        stream.touch()
    return forked(_become, command, {**os.environ, **environment}, streams), streams


def _ended(command: Sequence[str], process: BaseProcess, streams: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Wait for a process, and read what it printed."""
    process.join()
    assert process.exitcode is not None
    out, err = (stream.read_text() for stream in streams[1:])
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _become(
    command: Sequence[str], environment: Mapping[str, str], streams: Sequence[Path], fresh: bool = False
) -> None:
    """Turn this process into `python -m MODULE ARGUMENTS`, which takes every signal as in a terminal."""
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_APPEND), number)
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's background jobs ignore some
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    if fresh:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *command], dict(environment))
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - they stay open
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    flag, module, *arguments = command
    assert flag == "-m", "only modules are run in a forked process"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
