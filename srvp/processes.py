"""Several processes that share one piece of work."""

from collections.abc import Callable
from typing import Any

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn


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
        RuntimeError: a process failed; the last line of its error, or how it ended.
    """
    workers = spawn(function, args, nprocs=count, join=False)
    try:
        while not workers.join(timeout=1):
            meanwhile()
        meanwhile()
    except (ProcessRaisedException, ProcessExitedException) as error:
        # They are plain Exceptions, with a whole traceback as their message.
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    finally:  # an interrupt reaches only this process
        for process in workers.processes:
            process.terminate()
