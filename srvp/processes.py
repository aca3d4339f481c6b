"""Several processes that share one piece of work."""

from collections.abc import Callable
from typing import Any

from torch.multiprocessing import spawn


def in_processes(
    function: Callable[..., None],
    args: tuple[Any, ...],
    count: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Call `function(number, *args)` in `count` new processes and wait until all have ended.

    Args:
        function: importable, as are its arguments.
        args: what each process is given after its number, from 0.
        count: of processes.
        meanwhile: called here about once a second, and once more at the end.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the error of a process that failed.
    """
    workers = spawn(function, args, nprocs=count, join=False)
    try:
        while not workers.join(timeout=1):
            meanwhile()
        meanwhile()
    finally:  # an interrupt reaches only this process
        for process in workers.processes:
            process.terminate()
