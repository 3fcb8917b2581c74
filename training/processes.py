"""Runs this command again in several processes, as torchrun would, and ends as they end."""

from __future__ import annotations

import sys
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from training.errors import TrainingError


def run_in_processes(count: int, machines: int = 1, rendezvous: str | None = None) -> int:
    """Run the command line of this process in `count` of them; return the first failed one's code.

    torchrun itself makes 1 of every exit code, so whoever waits for it cannot tell a wrong recipe,
    which no second try mends, from a machine that went away.

    Args:
        count: Processes on this machine.
        machines: How many run this same command.
        rendezvous: HOST:PORT of one of them, where they meet; None for one that is alone.

    Raises:
        TrainingError: The rendezvous is no such address.
    """
    launch: Any = torchrun  # which has no types
    where = ["--standalone"]
    if rendezvous is not None:
        host, _, port = rendezvous.rpartition(":")
        if not (host and port.isdecimal()):
            raise TrainingError(f"--rendezvous is HOST:PORT, not {rendezvous}")
        where = [f"--nnodes={machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}"]
    arguments = launch.parse_args([*where, f"--nproc-per-node={count}", *sys.argv])
    try:
        launch.run(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A signal is a negative one.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except RendezvousError as error:
        # Which machines may come to be there yet.
        told = " ".join(str(error).split())
        sys.stderr.write(f"fivecrop: error: nobody to meet at {rendezvous}: {told}\n")
        return 1
    return 0
