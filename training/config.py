"""What a recipe may say about data, model and training. Standard library only: argument parsing imports
this."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FORBID_UNKNOWN_KEYS = {"extra": "forbid"}


@dataclass(kw_only=True)
class DataConfig:
    """Where the images come from and how they are split."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    source: Literal["digits", "fashion_mnist", "imagefolder", "timm"] = "imagefolder"
    """`digits`: the 1,797 real handwritten digits inside scikit-learn. `fashion_mnist`: 70,000 images from
    the Debian package dataset-fashion-mnist or torchvision's download. `imagefolder`: your own folder, see
    `root`. `timm`: one of timm's readers, see `reader`."""

    root: Path | None = None
    """For `imagefolder`: either `root/<class>/image.png`, which is split here, or
    `root/train/<class>/...` with `root/val` and `root/test` beside it; of these two, one that is missing is
    carved out of train. With `multi_label`, `root/labels.csv` names the classes of each file. For `timm`: where
    the reader finds or puts its data."""

    reader: str | None = None
    """For `timm`: torch/NAME, hfds/NAME, wds/[NAME] or tfds/NAME, as timm's --dataset. What it reads is written out
    once as image files."""

    train_split: str = "train"
    """The reader's name of the training split. For a folder: train."""

    val_split: str | None = None
    """The reader's name of the validation split; none carves one out of train. For a folder: val, valid or
    validation."""

    test_split: str | None = None
    """The reader's name of the test split; none carves one out of train."""

    class_map: Path | None = None
    """timm's file of class names in the order of their indices, one a line (.txt)."""

    download: bool = False
    """Let the reader download what is not there (torch/ and tfds/)."""

    input_key: str | None = None
    """The reader's name of the image; none takes its usual one."""

    target_key: str | None = None
    """The reader's name of the label."""

    multi_label: bool = False
    """An image may have several classes, or none: sigmoid heads, binary losses, mean average precision."""

    name: str | None = None
    """Folder under `<home>/data`. Default: the source, or for `imagefolder` the name of the root folder."""

    val_fraction: float = 0.1
    """Share of the images (of train, where it has to be carved) that becomes the validation split."""

    test_fraction: float = 0.2
    """The same for the test split. `fashion_mnist` has an official test split of 10,000, which is kept."""

    split_seed: int = 0
    """Seed of the split. An `imagefolder` is split by a hash of seed and content, so that adding an image
    never moves another one, and two copies of one image never land in two splits."""

    on_corrupt: Literal["fail", "quarantine"] = "fail"
    """An image that PIL cannot decode stops the preparation (`fail`), or is left out and listed in
    dataset.json."""

    max_per_class: int | None = None
    """Keep at most this many images of each class in each split: for a quick trial, not for a result."""


@dataclass(kw_only=True)
class ModelConfig:
    """A timm model and how images reach it. What is not given comes from timm's own configuration of the
    model."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    name: str
    """Any name that timm.list_models() knows; `name.tag` picks one set of pretrained weights."""

    pretrained: bool = False
    """Start from timm's weights (downloaded from the Hugging Face hub) instead of from scratch."""

    weights: Path | None = None
    """Start from this local state dict instead: .safetensors, or a pickled .pth, .pt, .bin or .tar, which is read
    with torch's weights_only. Its head is replaced where the number of classes differs; whatever else does not
    fit is refused with its keys."""

    num_classes: int | None = None
    """A check: the number of classes that the data must have; none takes what it has."""

    head_init_scale: float | None = None
    """Multiplies the new classifier's weights before training."""

    head_init_bias: float | None = None
    """Every bias of the new classifier before training."""

    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""

    args: dict[str, Any] = field(default_factory=dict)
    """Handed to timm.create_model as they are, e.g. {drop_path_rate: 0.1}. num_classes comes from the
    data."""

    input_size: tuple[int, int, int] | None = None
    """(channels, height, width). Channels are 3: images are always opened as RGB."""

    mean: tuple[float, float, float] | None = None
    """Per channel, of pixels scaled to 0..1."""

    std: tuple[float, float, float] | None = None
    """Per channel, of pixels scaled to 0..1."""

    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    """Of the evaluation transform's resize."""

    crop_pct: float | None = None
    """Evaluation resizes to input_size / crop_pct, then takes the centre; 1.0 keeps the whole image."""

    crop_mode: Literal["center", "squash", "border"] | None = None
    """timm's: keep the aspect ratio and cut, squash, or pad."""


@dataclass(kw_only=True)
class AugmentConfig:
    """timm's training transform; the names are timm's own (timm.data.create_transform, timm.data.Mixup)."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    enabled: bool = True
    """False: resize and centre crop only, whatever stands below."""

    crop_mode: Literal["rrc", "rkrc", "rkrr"] = "rrc"
    """rrc: random resized crop; rkrc, rkrr: keep the ratio, then centre or random crop, reflecting at the
    border."""

    scale: tuple[float, float] = (0.35, 1.0)
    """Range of the crop's area as a share of the image."""

    ratio: tuple[float, float] = (0.75, 1.3333)
    """Range of the crop's aspect ratio."""

    hflip: float = 0.5
    """Probability of a horizontal flip. 0 where left and right matter, as in digits."""

    vflip: float = 0.0
    """Probability of a vertical flip."""

    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter; timm ignores it under auto_augment."""

    auto_augment: str | None = None
    """timm's policy string, e.g. rand-m9-mstd0.5-inc1."""

    random_erasing: float = 0.0
    """Probability of erasing a rectangle."""

    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Of the training transform's resize."""

    mixup: float = 0.0
    """Alpha of Mixup; 0 is off."""

    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""

    mix_prob: float = 1.0
    """Probability that a batch is mixed at all, where mixup or cutmix is on."""

    mix_switch_prob: float = 0.5
    """Probability of CutMix where both are on."""

    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """One draw for a batch, for each pair, or for each image; the last two need an even batch_size."""

    cutmix_minmax: tuple[float, float] | None = None
    """Range of the cut's side as a share of the image's; turns CutMix on and overrides its alpha."""

    mix_off_epoch: int = 0
    """Mix no more from this epoch on (counted from 0); 0 never stops."""

    random_erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What fills the rectangle: zeros, one random colour, or a random colour for each pixel."""

    random_erasing_count: int = 1
    """Most rectangles an image."""

    color_jitter_prob: float | None = None
    """Probability of the colour jitter; none is always (timm's SimCLR-like form otherwise)."""

    grayscale_prob: float = 0.0
    """Probability of a grey image."""

    gaussian_blur_prob: float = 0.0
    """Probability of a Gaussian blur."""

    splits: int = 0
    """AugMix splits of a batch (timm's aug_splits): 0, or from 2 with the loss `jsd`. The first split is clean."""

    resplit: bool = False
    """Erase nothing in the first, clean split."""

    repeats: int = 0
    """Each image this many times in a global batch (timm's repeated augmentation); distributed runs only."""


@dataclass(kw_only=True)
class DistillConfig:
    """A teacher beside the labels: timm's distillation tasks."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    teacher: str
    """Name of a timm model."""

    weights: Path | None = None
    """The teacher's local weights, with the classes of this data set; none takes timm's pretrained ones."""

    kind: Literal["logit", "feature", "token"] = "logit"
    """What is matched: logits, pooled features, or the logits of the student's own distillation head
    (deit distilled)."""

    task_weight: float | None = None
    """Weight of the labels' loss. Alone, the teacher's is 1 minus it."""

    teacher_weight: float | None = None
    """Weight of the teacher's loss."""

    temperature: float = 4.0
    """Of the softmax, for `logit` and `token`."""

    token_target: Literal["soft", "hard"] = "soft"
    """For `token`: the teacher's distribution, or its first class."""


@dataclass(kw_only=True)
class TrainConfig:
    """One training run: the optimizer, its schedule, and what is kept."""

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    epochs: int = 30
    """Passes over the training split, warm-up included."""

    batch_size: int = 64
    """Images a step and process; no more than the training split holds."""

    accumulate: int = 1
    """Steps whose gradients are added up before the optimizer moves: the batch is batch_size times this, on each
    process."""

    eval_batch_size: int = 256
    """Images a step in validation and test."""

    optimizer: str = "adamw"
    """Any name that timm.optim.list_optimizers() knows."""

    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """More arguments of timm's create_optimizer_v2, e.g. {momentum: 0.9, betas: [0.9, 0.95]}."""

    lr: float = 1e-3
    """Peak learning rate, after warm-up."""

    weight_decay: float = 0.05
    """timm leaves biases and normalisation out of it."""

    layer_decay: float | None = None
    """Each layer's learning rate is this times the next one's (timm's layer decay); the head keeps lr."""

    backbone_lr_scale: float | None = None
    """Learning rate of everything but the classifier, as a share of lr; not together with layer_decay."""

    freeze: tuple[str, ...] = ()
    """Modules that stay as they are, BatchNorm statistics included: names as in model.named_modules(), or
    `backbone` for everything but the classifier."""

    scheduler: str = "cosine"
    """timm's: cosine, tanh, step, multistep, poly, wsd, rsqrt, constant or none."""

    step_on_epochs: bool = False
    """True changes the learning rate once an epoch, as timm's script does unless told otherwise; false once an
    update."""

    scheduler_args: dict[str, Any] = field(default_factory=dict)
    """More arguments of timm's create_scheduler_v2."""

    warmup_epochs: int = 1
    """Epochs of linear warm-up, from warmup_lr."""

    warmup_lr: float = 1e-5
    """Where warm-up starts."""

    min_lr: float = 1e-6
    """Where the schedule ends."""

    loss: Literal["ce", "bce", "asl", "poly", "jsd", "twoway", "zlpr", "db"] | None = None
    """timm's loss; none is ce for single-label heads and bce for multi-label ones."""

    loss_args: dict[str, Any] = field(default_factory=dict)
    """More arguments of timm.loss.create_classification_loss, e.g. {bce_target_thresh: 0.2}."""

    smoothing: float = 0.0
    """Label smoothing of the training loss."""

    clip_grad: float | None = None
    """Largest norm (or value, or ratio: see clip_mode) of the gradient; none is no clipping."""

    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """How: by the norm of all, by each value, or adaptively by the ratio to the weight's norm (NFNet's)."""

    distill: DistillConfig | None = None
    """Learn from a teacher as well."""

    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay (timm's ModelEmaV3).
    Both are validated; the checkpoint holds whichever is better and says which."""

    ema_warmup: bool = True
    """Let the moving average follow faster in the beginning."""

    keep: Literal["best", "last"] = "best"
    """Weights of the epoch with the best validation accuracy (ties: the lower loss), or of the last
    epoch."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """The training transform."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 train under autocast, fp16 with a gradient scaler and on CUDA only. The final test is in fp32
    either way."""

    compile: str | None = None
    """Backend of torch.compile, e.g. inductor; none runs eagerly."""

    compile_mode: str | None = None
    """torch.compile's mode, e.g. reduce-overhead."""

    sync_bn: bool = False
    """Distributed runs: BatchNorm over the batches of all processes."""

    dist_bn: Literal["none", "broadcast", "reduce"] = "reduce"
    """Distributed runs: before validation, every process takes rank 0's BatchNorm statistics, or their mean."""

    on_nan: Literal["stop", "skip"] = "stop"
    """A loss that is not a number stops the run and names step, learning rate and files; or its step is left out
    and counted."""

    save_every: int = 0
    """Steps between two savings of the unfinished run inside an epoch; 0 saves after each epoch (and on
    SIGTERM). A kill -9 loses at most that."""

    keep_states: int = 2
    """Saved states of an unfinished run that are kept: when the last one is torn, the one before is used."""

    channels_last: bool = False
    """torch's NHWC memory format: faster for most convolutional nets on GPUs, and on CPUs with wide
    vectors."""

    device: str = "auto"
    """auto takes CUDA if it is there; or cpu, cuda, cuda:1."""

    workers: int = 1
    """Processes that decode and augment; 0 does it in the training process."""

    threads: int | None = None
    """torch's CPU threads; none leaves torch's own choice (the number of cores)."""

    seed: int = 0
    """Of weights, order and augmentation. On one CPU the same seed gives the same weights, interrupted or
    not."""
