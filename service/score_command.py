"""`fivecrop score`: scores folders, buckets, tables and shards; resumes; tells how far it is."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import click

from service.environment import load_settings
from service.log import configure_log
from service.score.dataset import open_output, read_manifest
from service.score.display import make_display
from service.score.errors import JobFailed, ScoreError
from service.score.job import Summary, score_dataset
from service.score.options import ENGINES, FORMATS, TTA_POLICIES, ScoreOptions
from service.score.status import read_status, tell_status
from service.score.stopping import INTERRUPTED, leave, stoppable
from service.score.storage import is_url, tell
from service.score.transport import Connect
from service.settings import CLIENT_KEY, VariantChoice


class _ScoreGroup(click.Group):
    """A group whose command need not be named: `score PHOTOS` is `score run PHOTOS`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `run` before arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ScoreGroup)
def score() -> None:
    """Score images into a dataset: the service's answers for any number of them.

    `fivecrop score INPUT... --model NAME --out FOLDER`; its options: `fivecrop score run --help`.
    """


@score.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", required=True, help="NAME or NAME@VERSION.")
@click.option("--out", required=True, metavar="FOLDER", help="Folder or URL to write to.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished job.")
@click.option("--top-k", type=int, default=5, show_default=True, help="Best classes in a row.")
@click.option(
    "--tta", type=click.Choice(TTA_POLICIES), default="none", help="Test-time augmentation."
)
@click.option(
    "--min-score", type=float, metavar="X", help="Abstain under this score, not the bundle's own."
)
@click.option("--embedding", is_flag=True, help="Add the features that the classifier reads.")
@click.option("--probabilities", is_flag=True, help="Add the probability of every class.")
@click.option("--sha256", is_flag=True, help="Add the sha256 of each image file.")
@click.option("--variant", type=click.Choice([one.value for one in VariantChoice]))
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes [default: one a core], or images asked for at a time [16].",
)
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True)
@click.option("--url", help="Of the running service that `--engine http` or `grpc` asks.")
@click.option("--address", help="Of the Ray cluster; without one `--engine ray` starts its own.")
@click.option("--key", envvar=CLIENT_KEY, help=f"API key for it; or in {CLIENT_KEY}.")
@click.option("--limit", type=int, metavar="N", help="Only the first N images.")
@click.option("--shard", metavar="I/N", help="Every N-th image, from the I-th on.")
@click.option("--column", help="Of tables: what holds paths or images.")
@click.option("--format", type=click.Choice(FORMATS), default="parquet", show_default=True)
@click.option(
    "--max-error-rate",
    type=float,
    default=0.1,
    show_default=True,
    metavar="X",
    help="Give up when more than this share of the images fails.",
)
@click.option("--part-rows", type=int, default=2_000, show_default=True, help="Rows in a file.")
@click.option(
    "--part-seconds",
    type=float,
    default=30.0,
    show_default=True,
    help="Write a file after so long: what a kill can cost.",
)
@click.option("--model-repository", metavar="FOLDER", help="Folder of bundles, or its URL.")
@click.option(
    "--metrics-address", metavar="HOST:PORT", help="Answer Prometheus there while the job runs."
)
@click.option("--json", "as_json", is_flag=True, help="Write events to standard output.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    out: str,
    *,
    resume: bool,
    metrics_address: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Score every image of the inputs into --out.

    An INPUT is a folder (with all below it), a glob, an image, a tar shard, a Parquet or CSV file
    with a column of paths or images, or a text file (.txt, .list) that names an image a line; each
    a path or a URL that fsspec opens.
    """
    from service.score.job_metrics import serve_metrics

    configure_log("warning")
    options = ScoreOptions(**chosen)
    display = make_display(as_json=as_json)
    watched = serve_metrics(metrics_address, display.show)
    summary: Summary | None
    with display, watched as watch, stoppable() as should_stop, _without("pandas"):
        try:
            summary = score_dataset(
                inputs,
                out,
                options,
                resume=resume,
                connect=_find_transport(options),
                watch=watch,
                should_stop=lambda: should_stop() is not None,
            )
        except JobFailed as error:
            click.echo(f"fivecrop: error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            summary = None
        number = should_stop() or signal.SIGTERM
        if summary is not None:
            display.conclude(summary)
    if summary is None:
        click.echo(INTERRUPTED, err=True)
        leave(128 + number)
    if summary.state == "stopped":
        click.echo("what is done is written; the same command with --resume goes on", err=True)
        ctx.exit(128 + number)
    if summary.state == "failed":
        click.echo(
            f"fivecrop: error: {summary.progress.errors:,} of {summary.progress.done:,} images "
            f"failed, and --max-error-rate is {options.max_error_rate:g}; their rows say why, "
            "`fivecrop score status` how many of each; --resume with a larger rate goes on",
            err=True,
        )
        ctx.exit(1)


@score.command()
@click.argument("out", metavar="FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def status(out: str, *, as_json: bool) -> None:
    """Tell how far the job of an output is."""
    found = read_status(out)
    click.echo(json.dumps(found, indent=2) if as_json else tell_status(found))


@score.command()
@click.argument("out", metavar="FOLDER")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="[default: _report.html in the folder]",
)
def report(out: str, file: Path | None) -> None:
    """Write an HTML report of an output: classes, confidence, errors, speed, samples."""
    from service.score.report import write_report

    text = write_report(out, max_bytes=load_settings().max_body_bytes)
    if file is None and is_url(out):
        raise ScoreError("--file says where the report of a remote output goes")
    click.echo(_write(file or Path(out) / "_report.html", text.encode()))


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draw the worst disagreements.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def compare(first: str, second: str, sheet: Path | None, *, as_json: bool) -> None:
    """Compare two outputs of `fivecrop score`: agreement, flips by class, score shift.

    For choosing between two versions of a model before one is promoted.
    """
    from service.score.comparison import compare_outputs, tell_comparison
    from service.score.contact_sheet import draw_contact_sheet

    found = compare_outputs(first, second)
    click.echo(json.dumps(found.describe(), indent=2) if as_json else tell_comparison(found))
    if sheet is not None:
        column = read_manifest(open_output(first))["options"]["column"]
        max_bytes = load_settings().max_body_bytes
        picture = draw_contact_sheet(found, column=column, max_bytes=max_bytes)
        click.echo(_write(sheet, picture), err=True)


def _write(file: Path, content: bytes) -> str:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ScoreError(f"cannot write {file}: {tell(error)}") from error
    return str(file)


class _Absent(MetaPathFinder):
    """Makes a module look as if it was not installed.

    None in `sys.modules` would do for Python, but Cython's import takes it for the module.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        """Raises ModuleNotFoundError for the module."""
        if fullname == self._module:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Keeps a module from being imported.

    pyarrow imports pandas, wherever it is installed, to ask whether a list is one of its series;
    that takes a second of CPU time.
    """
    finder = _Absent(module)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _find_transport(options: ScoreOptions) -> Connect | None:
    if options.engine == "grpc":
        from service.grpc_transport import GrpcTransport  # nobody else needs gRPC here

        return GrpcTransport
    return None
