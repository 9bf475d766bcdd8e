"""Run one command and write what it cost as JSON: launcher.py FILE TIMEOUT COMMAND...; TIMEOUT may be empty.

A process of its own because the kernel carries the largest resident memory of whoever starts a program over into that program's figures
(exec keeps the maximum): started from here they begin at this interpreter's few megabytes instead of at those of a process with torch.
wait4 counts for the child and for what it waited for, not for us. Only the standard library's smallest parts are imported. When it is
told to end, so is the command.
"""

import json
import os
import signal
import sys
import time


def main(report: str, timeout: str, *command: str) -> None:
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)

    def stop(number: int, _: object) -> None:
        os.kill(pid, signal.SIGKILL)
        os.wait4(pid, 0)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    deadline = start + float(timeout) if timeout else None
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG if deadline else 0)
        if found:
            break
        if deadline and time.perf_counter() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        time.sleep(0.02)
    cost = {
        "code": os.waitstatus_to_exitcode(status),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(time.perf_counter() - start, 2),
    }
    with open(report, "w") as file:  # noqa: PTH123  (pathlib is not small)
        json.dump(cost, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
