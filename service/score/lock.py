"""Keeps a second job from an output: a file that says whose it is and since when."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from typing import Any, Final

from service.score.errors import ScoreError
from service.score.folder import Folder, unwritable

LOCK_FILE: Final = "_lock.json"
# A lock is renewed this often. A holder on another machine that was silent for so long is dead; on
# this machine the process is looked for.
_RENEW_S: Final = 10.0
_DEAD_AFTER_S: Final = 60.0


class Lock:
    """Held from `acquire` to `release`; renewed by a thread.

    Attributes:
        is_lost: Whether another job took it, because this one was silent for too long.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.is_lost = False
        self._token = secrets.token_hex(8)
        self._began = time.time()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the lock, from a dead holder if need be.

        Raises:
            ScoreError: Another job holds it (says who, where and since when), or the output cannot
                be written.
        """
        try:
            if not self._folder.create(LOCK_FILE, self._content()):
                holder = read_lock(self._folder)
                if holder is not None and is_alive(holder):
                    raise ScoreError(
                        f"{self._folder.address} is being written by {describe_lock(holder)}"
                    )
                self._folder.write(LOCK_FILE, self._content())
                # Of two that took over at once, the one that was overwritten gives way.
                holder = read_lock(self._folder)
                if holder is None or holder["token"] != self._token:
                    raise ScoreError(f"{self._folder.address}: another job took it just now")
        except OSError as error:
            raise unwritable(self._folder, error) from error
        self._thread = threading.Thread(target=self._renew, name="fivecrop-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        try:
            holder = read_lock(self._folder)
            if holder is not None and holder["token"] == self._token:
                self._folder.remove(LOCK_FILE)
        except OSError:
            pass  # it will be seen to be dead

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_S):
            try:
                holder = read_lock(self._folder)
                if holder is not None and holder["token"] != self._token:
                    self.is_lost = True
                    return
                self._folder.write(LOCK_FILE, self._content())
            except OSError:
                continue  # a full disk is noticed where it matters

    def _content(self) -> bytes:
        holder = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_began": _began(os.getpid()),
            "began": self._began,
            "renewed": time.time(),
        }
        return json.dumps(holder).encode()


def read_lock(folder: Folder) -> dict[str, Any] | None:
    """Returns who holds the lock; None when nobody does, or nobody that can be made out."""
    try:
        holder = json.loads(folder.read(LOCK_FILE))
        return {name: holder[name] for name in ("token", "host", "pid", "began", "renewed")} | {
            "process_began": holder.get("process_began")
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether the job that holds a lock may still be running."""
    if holder["host"] == socket.gethostname():
        began = _began(holder["pid"])
        if began is not None:
            return bool(began == holder["process_began"])
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    return bool(time.time() - holder["renewed"] < _DEAD_AFTER_S)


def describe_lock(holder: dict[str, Any]) -> str:
    """Returns who holds a lock, for people."""
    age_s = max(0, round(time.time() - holder["began"]))
    return f"process {holder['pid']} on {holder['host']}, for {age_s} s"


def _began(pid: int) -> str | None:
    """Returns when a process began, in the kernel's ticks; a number may be used again."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - not a path to join
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None
