"""Whether this is a notebook, where a run's progress is then shown. What shows it is imported when it is needed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Listener: TypeAlias = Callable[[dict[str, Any]], None]


def in_notebook() -> bool:
    """Returns whether this runs in the kernel of a notebook (Jupyter, JupyterLab, Colab, VS Code).

    Example:
        >>> in_notebook()
        False
    """
    # Where there is a kernel, its modules have been imported.
    if "IPython" not in sys.modules or "ipykernel" not in sys.modules:
        return False
    from ipykernel.zmqshell import ZMQInteractiveShell
    from IPython import get_ipython

    return isinstance(get_ipython(), ZMQInteractiveShell)


@contextmanager
def shown_in_notebook(listen: Listener | None) -> Iterator[Listener | None]:
    """Gives the listener, or where there is none and a notebook is, one that shows the progress there."""
    if listen is not None or not in_notebook():
        yield listen
        return
    from kinfold.tracking.picture import NotebookProgress

    progress = NotebookProgress()
    try:
        yield progress
    finally:
        progress.update()
