"""The sub-commands `train`, `export` and `import` of `fivecrop`.

Found through entry points, so that serving needs none of this. PyTorch takes seconds to import:
each command imports what it needs when it runs, and `fivecrop --help` stays instant.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from service.bundle.manifest import TtaPolicy
    from training.run_loggers import LoggerName

_P = ParamSpec("_P")
_R = TypeVar("_R")
TTA = ("none", "hflip", "five_crop", "ten_crop", "multi_scale")
_FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)

repository_option = click.option(
    "--repository",
    type=_FOLDER,
    default=Path("exported_models"),
    show_default=True,
    help="The folder of bundles.",
)
_fp16_option = click.option("--fp16", is_flag=True, help="Add a half-precision variant, for GPUs.")
_int8_option = click.option(
    "--int8", is_flag=True, help="Add an 8-bit variant, for CPUs, if it is as good and faster."
)
_half_weights_option = click.option(
    "--half-weights",
    is_flag=True,
    help="Keep large weights in 16 bits: half the file, and the same speed.",
)
_json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As optim.lr=0.1.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set seed=SEED.")
@click.option("--run-dir", type=_FOLDER, help="Default: runs/NAME-SEED.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    help="That share each batch; one for each GPU of this machine.",
)
@click.option("--machines", type=click.IntRange(1), default=1, help="That run this very command.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where the machines meet: on one of them.")
@click.option(
    "--log-to",
    type=click.Choice(["tensorboard", "mlflow"]),
    multiple=True,
    help="Tell it of each epoch too; RUN_DIR/tensorboard, or where MLFLOW_TRACKING_URI says.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@_json_option
def train(
    recipe: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    run_dir: Path | None,
    resume: bool,
    device: Literal["auto", "cpu", "cuda"],
    processes: int,
    machines: int,
    rendezvous: str | None,
    log_to: tuple[LoggerName, ...],
    quiet: bool,
    is_json: bool,
) -> None:
    """Train a RECIPE (TOML) into a run folder and print the folder."""
    from training.config import load_recipe

    seeded = () if seed is None else (f"seed={seed}",)
    resolved = load_recipe(recipe, (*overrides, *seeded))
    from training.distributed import is_in_team, join_team
    from training.processes import run_in_processes

    if (machines > 1) != (rendezvous is not None):
        raise click.UsageError("--machines and --rendezvous go together")
    if processes * machines > 1 and not is_in_team():
        sys.exit(run_in_processes(processes, machines, rendezvous))
    from training import train as training
    from training.run_loggers import open_loggers

    folder = training.default_run_dir(resolved) if run_dir is None else run_dir
    with join_team(device) as team, open_loggers(log_to, resolved, folder) as on_epoch:
        training.train(
            resolved,
            run_dir=folder,
            resume=resume,
            device=device,
            is_progress_shown=not quiet,
            on_epoch=on_epoch,
            team=team,
        )
    if team.is_writer:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        click.echo(json.dumps({"run_dir": str(folder), **result}) if is_json else str(folder))


@click.command("find-lr")
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As optim.name=sgd.")
@click.option("--steps", type=click.IntRange(10), default=100, show_default=True)
@click.option("--lowest", type=float, default=1e-6, show_default=True)
@click.option("--highest", type=float, default=10.0, show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="A PNG to draw.")
@_json_option
def find_lr(
    recipe: Path,
    overrides: tuple[str, ...],
    steps: int,
    lowest: float,
    highest: float,
    plot: Path | None,
    is_json: bool,
) -> None:
    """Find a learning rate for RECIPE: raise it from batch to batch and watch the loss."""
    if not 0 < lowest < highest:
        raise click.UsageError("--lowest must be above 0 and below --highest")
    from training.config import load_recipe
    from training.lr_finder import find_lr as sweep_lr
    from training.lr_finder import plot_sweep

    resolved = load_recipe(recipe, overrides)
    sweep = sweep_lr(resolved, lowest=lowest, highest=highest, steps=steps)
    if plot is not None:
        plot_sweep(sweep, plot, title=f"{resolved.name}: learning rate")
    if is_json:
        click.echo(json.dumps({"steepest": sweep.steepest, "cautious": sweep.cautious}))
    else:
        click.echo(f"steepest fall {sweep.steepest:.2g}, cautious {sweep.cautious:.2g}")


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As model.norm=none.")
@_json_option
def activations(recipe: Path, overrides: tuple[str, ...], is_json: bool) -> None:
    """Show the variance and the dead ReLUs of each layer of RECIPE before its first step."""
    import tempfile

    from training.config import load_recipe
    from training.hardware import choose_device
    from training.probe import describe_probe, probe_to_dict
    from training.trainer_setup import build_trainer

    resolved = load_recipe(recipe, (*overrides, "train.is_feature_cache_on=false"))
    with tempfile.TemporaryDirectory() as folder:
        layers = build_trainer(resolved, Path(folder), choose_device("cpu")).probed_layers()
    click.echo(json.dumps(probe_to_dict(layers)) if is_json else describe_probe(layers))


@click.command()
@click.argument("run_dir", type=_FOLDER, required=False)
@click.option("--name", help="Of the model in the repository.")
@click.option(
    "--check",
    "checked",
    metavar="BUNDLE",
    help="Instead, prove a bundle again (a folder, or NAME[@VERSION]): files, graphs, golden "
    "samples, and accuracy where its data are; exit code 1 if it is not what it says.",
)
@click.option("--data", type=ANY_PATH, help="Of --check; default: the validation of the recipe's.")
@repository_option
@click.option("--licence", help="Of the model; default: that of the recipe's data.")
@_fp16_option
@_int8_option
@_half_weights_option
@click.option(
    "--tta",
    type=click.Choice(TTA),
    multiple=True,
    help="Measure this augmentation too; default: hflip if the recipe flips.",
)
@click.option(
    "--target-accuracy",
    type=click.FloatRange(0, 1),
    help="Of answers above the abstention threshold; default: half the errors.",
)
@click.option("--class-thresholds", is_flag=True, help="Thresholds for single classes too.")
@click.option(
    "--hierarchy",
    type=ANY_PATH,
    help="JSON object from child to parent: groups that an answer may fall back to.",
)
@_json_option
def export(
    run_dir: Path | None,
    name: str | None,
    checked: str | None,
    data: Path | None,
    repository: Path,
    licence: str | None,
    fp16: bool,
    int8: bool,
    half_weights: bool,
    tta: tuple[TtaPolicy, ...],
    target_accuracy: float | None,
    class_thresholds: bool,
    hierarchy: Path | None,
    is_json: bool,
) -> None:
    """Publish a training run as a calibrated, gated bundle and print its folder."""
    if checked is not None:
        from training.recheck_command import check_bundle

        sys.exit(0 if check_bundle(checked, repository, data, is_json=is_json) else 1)
    if run_dir is None or name is None:
        raise click.UsageError("give RUN_DIR and --name, or --check BUNDLE")
    from training.export import ExportOptions, export_run

    options = ExportOptions(
        has_fp16=fp16,
        has_int8=int8,
        has_half_weights=half_weights,
        tta_policies=tta,
        target_accuracy=target_accuracy,
        has_class_thresholds=class_thresholds,
    )
    folder = export_run(
        run_dir,
        name=name,
        repository=repository,
        licence=licence,
        hierarchy=hierarchy,
        options=options,
        on_stage=_tell_stage,
    )
    _print_bundle(folder, is_json)


@click.command("import")
@click.option("--arch", help="timm:NAME, torchvision:NAME or seed:NAME.")
@click.option("--onnx", type=ANY_PATH, help="Instead: a classifier in an ONNX file.")
@click.option("--onnx-output", help="Its output of the classes, where it has several.")
@click.option("--name", required=True, help="Of the model in the repository.")
@click.option("--weights", type=ANY_PATH, help="A .safetensors file; default: download them.")
@click.option(
    "--random-weights", is_flag=True, help="Weights from a seed instead, for measuring speed."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of --random-weights.")
@click.option(
    "--preprocess",
    multiple=True,
    metavar="KEY=VALUE|FILE.toml|TAG",
    help="Where it is not known or to be changed: resize=256 crop=224 interpolation=bicubic "
    "mean=R,G,B std=R,G,B mean_255=R,G,B std_255=R,G,B policy=squash simd_resize=true ...",
)
@click.option("--labels", type=ANY_PATH, help="Names of the classes: JSON, or one a line.")
@click.option(
    "--images",
    "--parquet",
    type=ANY_PATH,
    help="Real images for the gates, 64 or more, as a folder or Parquet file; "
    "default: crops of scikit-learn's two photographs.",
)
@repository_option
@click.option("--licence", help="Of the weights; default: what their provider states.")
@click.option("--accept-licence", is_flag=True, help="Import weights that are not free.")
@_fp16_option
@_int8_option
@_half_weights_option
@_json_option
def import_weights(
    arch: str | None,
    onnx: Path | None,
    onnx_output: str | None,
    name: str,
    weights: Path | None,
    random_weights: bool,
    seed: int,
    preprocess: tuple[str, ...],
    labels: Path | None,
    images: Path | None,
    repository: Path,
    licence: str | None,
    accept_licence: bool,
    fp16: bool,
    int8: bool,
    half_weights: bool,
    is_json: bool,
) -> None:
    """Publish weights that others trained as a gated bundle and print its folder."""
    if (arch is None) == (onnx is None):
        raise click.UsageError("give --arch or --onnx")
    if onnx is not None:
        if weights or random_weights or fp16 or int8 or half_weights:
            raise click.UsageError("an ONNX file is imported as it is, with its own weights")
        from training.importing_onnx import OnnxRequest, import_onnx

        classifier = OnnxRequest(
            file=onnx,
            name=name,
            labels=labels,
            preprocess=preprocess,
            output=onnx_output,
            images=images,
            licence=licence or "unknown",
        )
        _print_bundle(import_onnx(classifier, repository, _tell_stage), is_json)
        return
    assert arch is not None
    from training.export import ExportOptions
    from training.importing import ImportRequest, import_bundle

    request = ImportRequest(
        architecture=arch,
        name=name,
        weights=weights,
        random_seed=seed if random_weights else None,
        preprocess=preprocess,
        labels=labels,
        images=images,
        licence=licence,
        is_licence_accepted=accept_licence,
    )
    options = ExportOptions(has_fp16=fp16, has_int8=int8, has_half_weights=half_weights)
    # Download tools talk on stdout, which is for data.
    with redirect_stdout(sys.stderr):
        folder = import_bundle(request, repository, options, _tell_stage)
    _print_bundle(folder, is_json)


def _print_bundle(folder: Path, is_json: bool) -> None:
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    kept = {key: manifest[key] for key in ("name", "version", "metrics", "calibration", "decision")}
    click.echo(json.dumps({"folder": str(folder), **kept}) if is_json else str(folder))


def _tell_stage(stage: str) -> None:
    click.echo(stage, err=True)
