"""What a person sees of a command that answers many images: a bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(images: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how many images are done, when somebody looks."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("images", total=images)
        yield lambda done: bar.advance(task, done)
