"""Runs each job in a forked process of its own: nothing leaks from one model to the next, a crash or a time-out costs one row.

The parent imports torch and transformers once; a child starts in milliseconds and answers with one JSON line through a pipe.
"""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any


def forked(job: Callable[[], dict[str, Any]], seconds: float, memory_gb: float = 6.0) -> dict[str, Any]:
    """What `job` returns, or {"error": why}: an exception, a crash, or a run of more than `seconds`.

    The parent must hold no other threads (set one thread before importing torch).
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _answer(job, write, memory_gb)
    os.close(write)
    text, ended = _collect(read, time.monotonic() + seconds)
    os.close(read)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ended:
        return {"error": f"TimeOut: more than {seconds:g} s"}
    try:
        return json.loads(text)
    except ValueError:
        return {"error": f"Crash: process ended with status {status} without an answer"}


def _collect(read: int, deadline: float) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([read], [], [], left)
        if ready:
            part = os.read(read, 65536)
            if not part:
                return b"".join(parts), True
            parts.append(part)
    return b"".join(parts), False


def _answer(job: Callable[[], dict[str, Any]], write: int, memory_gb: float) -> None:
    import resource

    try:
        limit = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            answer = job()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:600]}
        with os.fdopen(write, "w") as file:
            json.dump(answer, file)
    finally:
        os._exit(0)
