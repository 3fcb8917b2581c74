"""The tables of a recipe that say how a network is trained."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.recipe_fields import STRICT, Fraction, NonNegative, Positive, PositiveInt, Share


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AugmentRecipe:
    """How a training image is changed before the network sees it."""

    # alternating: the first epoch flips a random half, each later one flips what the last did not.
    flip: Literal["none", "random", "alternating"] = "none"
    # Largest shift in each direction, in pixels. Only with data.loading = "memory".
    translate_px: Annotated[int, Field(ge=0)] = 0
    translate_fill: Literal["reflect", "zero"] = "reflect"
    # Side of a square, somewhere inside each image, that is painted in the mean colour (arXiv
    # 1708.04552); 0 is off. Only with data.loading = "memory".
    cutout_px: Annotated[int, Field(ge=0)] = 0
    # Least share of the area that a random cut keeps: 0.35 when fine-tuning (0.08 is for hundreds
    # of epochs). Only with data.loading = "stream".
    crop_min_area: Annotated[float, Field(gt=0, le=1)] = 0.35
    vertical_flip_probability: Fraction = 0.0
    # The geometry below is drawn from within +- these bounds.
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    # Of height and width.
    shift_fraction: Fraction = 0.0
    # 0.2 makes the contents 0.8 to 1.2 times as large.
    zoom_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear_degrees: Annotated[float, Field(ge=0, lt=90)] = 0.0
    # Half of the images; 1 is the strongest.
    perspective_distortion: Fraction = 0.0
    # Strength of an elastic distortion that is smooth over 5 pixels: 50 is strong at 224 pixels.
    elastic_alpha: NonNegative = 0.0
    # 0.4 multiplies by 0.6 to 1.4; hue is turned by up to this share of the colour circle.
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    # Deviation along the principal components of the data's colours: 0.1 in AlexNet ("fancy PCA").
    fancy_pca_std: NonNegative = 0.0
    # Gaussian blur of half of the images, up to this deviation in pixels.
    blur_max_sigma: NonNegative = 0.0
    # Deviation of Gaussian noise, of pixels scaled to [0, 1].
    noise_std: NonNegative = 0.0
    # One policy at most. RandAugment: so many operations of a strength of 0 to 30, 9 is usual.
    is_trivial_augment_on: bool = False
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] | None = None
    randaugment_operations: PositiveInt = 2
    # AugMix: 1 to 10, 3 is usual.
    augmix_severity: Annotated[int, Field(ge=1, le=10)] | None = None
    # Weight of how far the answers to three looks at an image are apart, 12 in the paper: the image
    # as it is, and augmented twice. Each step then costs three times as much.
    augmix_consistency: NonNegative = 0.0
    # A rectangle is painted in the mean colour (arXiv 1708.04896).
    erase_probability: Fraction = 0.0
    # Shape of the beta distribution of the share of each image: 0.2 for mixup (arXiv 1710.09412), 1
    # for CutMix (1905.04899); 0 is off, with both on each batch takes either.
    mixup_alpha: NonNegative = 0.0
    cutmix_alpha: NonNegative = 0.0
    # Share of the batches that are mixed.
    mix_probability: Fraction = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class OptimRecipe:
    """The optimiser and its learning rate over time (for a loss averaged over the batch)."""

    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    lr: Positive
    # Of sgd and rmsprop.
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    is_nesterov: bool = True
    # Decay of AdamW's mean gradient and mean square, of rmsprop's mean square.
    betas: tuple[Share, Share] = (0.9, 0.999)
    rmsprop_decay: Share = 0.99
    # Added to the root of the mean square.
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    # Biases and normalisation weights are usually left out of the decay.
    is_decay_on_biases: bool = False
    # Multiplies the learning rate of batch normalisation's biases and divides their weight decay.
    norm_bias_lr_scale: Positive = 1.0
    # Each layer learns this much slower than the one behind it: 0.75 when fine-tuning.
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    schedule: Literal["constant", "linear", "cosine", "step", "one_cycle"] = "cosine"
    # Share of all steps spent rising linearly (one_cycle: as a cosine) from start_factor x lr to lr
    warmup_fraction: Fraction = 0.05
    start_factor: Fraction = 0.0
    # ... and the share of lr that the fall ends at.
    end_factor: Fraction = 0.0
    # step: after each of these shares of all steps the rate is multiplied by `step_factor`.
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    # one_cycle: momentum (AdamW: the first beta) falls to this while the rate is high.
    low_momentum: Share | None = None
    clip_grad_norm: Positive | None = None
    # Weight of the sum of magnitudes of the weights that decay, added to the loss.
    l1: NonNegative = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AverageRecipe:
    """Averaging of the weights along the way."""

    # ema: a shadow copy is evaluated and exported. lookahead: the net is pulled back to it.
    # swa: the mean of the weights from `start_fraction` on; batch statistics are then taken anew.
    kind: Literal["none", "ema", "lookahead", "swa"] = "none"
    # ema: per step, warmed up. lookahead: per pull, reached with the cube of the progress.
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    every_steps: PositiveInt = 1
    # swa: share of all steps after which the mean begins.
    start_fraction: Share = 0.75


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainRecipe:
    """The length of the run and how a step is computed."""

    epochs: Positive
    # Images a step, over all processes and parts.
    batch_size: PositiveInt
    # Parts that a batch is computed in, to need less memory: gradient accumulation.
    accumulation_parts: PositiveInt = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # For classes of different sizes. class_weights: losses are weighted by the inverse of the
    # class's size. logit_adjustment: arXiv 2007.07314. balanced_sampling: all classes are shown
    # equally often, images of small ones repeatedly.
    imbalance: Literal["none", "class_weights", "logit_adjustment", "balanced_sampling"] = "none"
    # Progressive resizing: [epoch, shorter side in pixels] from which epoch on images are shrunk
    # to that side; sides of 0 are full size. The validation is always at full size.
    size_schedule: tuple[tuple[NonNegative, Annotated[int, Field(ge=0)]], ...] = ()
    # auto: bf16 where the processor has instructions for it, else fp32. fp16 scales its gradients
    # and needs a GPU.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # oneDNN and cuDNN convolve faster so.
    is_channels_last: bool = True
    # torch.compile: a minute or more at the start, which long runs earn back. On a CPU it needs a
    # C++ compiler; ResNet-20 was then 1.13 times as fast (docs/benchmarks.md).
    is_compiled: bool = False
    # Activations inside the stages are computed again in the backward pass, to need less memory.
    is_gradient_checkpointing_on: bool = False
    # Parameter name -> epochs it is trained for; afterwards it stays as it is.
    freeze_after_epochs: Mapping[str, NonNegative] = Field(default_factory=dict)
    # Module name -> epochs that it rests before it is trained: `{"backbone" = 2}` trains the
    # classifier alone at first. `"backbone.layer4"` counts for itself, above `"backbone"`.
    unfreeze_after_epochs: Mapping[str, NonNegative] = Field(default_factory=dict)
    # What batch normalisation does in a resting module: eval keeps its statistics, train renews
    # them from the new images.
    frozen_norm: Literal["eval", "train"] = "eval"
    # Of a network whose `backbone` rests throughout: its features are computed once, the classifier
    # is trained on them. Without augmentation.
    is_feature_cache_on: bool = False
    checkpoint_every_epochs: PositiveInt = 1
    # What `best.safetensors` and early stopping go by, on the validation images.
    best_by: Literal["top1", "loss"] = "top1"
    # End the run after so many epochs without a better one, with the weights of the best.
    early_stop_epochs: PositiveInt | None = None
    # Write each layer's variance and share of dead ReLUs to `probe.jsonl` after so many epochs.
    probe_every_epochs: PositiveInt | None = None
    # Without it PyTorch takes every core. A small net is faster with 1, as more threads mostly wait
    # for each other. Another number rounds sums in another order.
    cpu_threads: PositiveInt | None = None
