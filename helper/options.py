"""Options that several scripts share, and how they are checked."""

import argparse
import os

import torch

import dataset

from . import export, optimizers, run_log, track
from .parsing import Parser, above_zero, count, epoch_list, first, known, number, pixels, seeds, share, weight, whole
from .util import UserError, as_user_error

# what may change between the start of a run and its continuation: it does not touch the numbers
FREE = {"resume", "config", "print_freq", "tb_freq", "save_freq", "save_steps", "num_workers"}
FREE |= {"data_folder", "save_folder", "cache_teacher", "cache_gb", "memory_gb", "run_log", "export", "graph"}
FREE |= {"weights", "track", "push_to_hub", "quiet"}


def add_run_options(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    first(group.add_argument("-t", "--trial", default="1", help="number of this repetition, part of the run's name"))
    group.add_argument(
        "--seed", type=seeds, help="of all random numbers; 1,2,3: with --sweep, as trials; default: the trial's number"
    )
    first(group.add_argument("--run_name", help="name of the run's folder; default: made of the options"))
    first(group.add_argument("--save_folder", default="./save", help="folder of all runs"))
    group.add_argument(
        "--resume", choices=["auto", "never"], default="auto", help="auto: a broken run goes on; never: afresh"
    )
    first(
        group.add_argument(
            "--test_only", metavar="FILE", nargs="?", const="", help="only validate FILE, or the run's last.pth"
        )
    )
    group.add_argument("--run_log", metavar="FILE", help="what is printed goes to this file too, with the time")
    group.add_argument(
        "--export", type=export.formats, default=[], metavar="FORMATS",
        help=f"formats that the trained network is saved in too, of {','.join(export.FORMATS)}",
    )  # fmt: skip
    group.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the finished run to Hugging Face's hub")
    first(group.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: all GPUs where there are some"))
    first(group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help="precision of the networks"))
    first(group.add_argument("--compile", action="store_true", help="torch.compile the networks"))
    group.add_argument(
        "--graph", choices=["auto", "off"], default="auto", help="auto: on one GPU steps are recorded as CUDA graphs"
    )
    group.add_argument(
        "--deterministic", action="store_true", help="the same seed gives the same bits on a GPU too; takes longer"
    )
    group.add_argument("--quiet", action="store_true", help="no bars and no lines of epochs: only results and errors")
    group.add_argument("--print_freq", type=count, default=100, help="steps between two looks at the loss")
    group.add_argument("--tb_freq", type=count, default=500, help="steps between two TensorBoard points in an epoch")
    group.add_argument(
        "--track", choices=["off", *track.TRACKERS], default="off", help="where each epoch's numbers go too"
    )
    group.add_argument("--save_predictions", action="store_true", help="save the last weights' for each test sample")
    group.add_argument("--save_freq", type=count, default=40, help="epochs between two kept checkpoints")
    group.add_argument("--save_steps", type=whole, default=0, help="steps between two last.pth in an epoch; 0: none")


def add_data_options(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    names = ", ".join(dataset.dataset_names())
    default = "default: as in the --test_only file, else cifar100"
    first(group.add_argument("--dataset", type=known(dataset.find_dataset), help=f"{names}; {default}"))
    first(group.add_argument("--data_folder", default="./data", help="where the data set is, or is downloaded to"))
    group.add_argument("--image_size", type=pixels, help="pixels of a side; default: the data set's own")
    first(group.add_argument("--batch_size", type=number(int, 2), default=64, help="images, of all devices together"))
    group.add_argument(
        "--loader",
        choices=["auto", "memory", "stream", "dali"],
        default="auto",
        help="image files are kept decoded, or read by workers all along; auto: kept where --memory_gb allows it",
    )
    group.add_argument("--memory_gb", type=above_zero, default=4.0, help="gigabytes that kept images may take")
    group.add_argument("--num_workers", type=count, default=8, help="workers that read image files, for each process")
    group.add_argument("--limit_train", type=count, metavar="N", help="class-balanced subset, for trials; default: all")
    group.add_argument("--limit_val", type=count, metavar="N", help="class-balanced subset, for trials; default: all")
    group.add_argument(
        "--val_split",
        type=count,
        metavar="N",
        help="so many training samples, as many of each class and the same for every seed, are validated in the place "
        "of the test set, which is seen once at the end",
    )


def add_augment_options(parser: Parser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--aug", choices=["crop_flip", *dataset.POLICIES], default="crop_flip", help="the others follow crop and flip"
    )
    group.add_argument("--reprob", type=share, default=0.0, metavar="P", help="probability of random erasing")
    group.add_argument("--mixup", type=weight, default=0.0, metavar="ALPHA", help="of mixup's Beta distribution")
    group.add_argument(
        "--cutmix",
        type=weight,
        default=0.0,
        metavar="ALPHA",
        help="of cutmix's; with --mixup half of the batches each",
    )


def check_augment_options(opt: argparse.Namespace) -> None:
    """Raises UserError for what gives a sample more views than a cache can keep."""
    if opt.cache_teacher:
        for key in ("aug", "reprob", "mixup", "cutmix"):
            if getattr(opt, key) not in ("crop_flip", 0):
                raise UserError(f"--cache_teacher: --{key} {getattr(opt, key)} makes more images than can be kept")


def add_teacher_options(parser: Parser) -> None:
    group = parser.add_argument_group("the teachers' answers")
    group.add_argument(
        "--teacher_ahead", type=count, metavar="N", help="ask for about N batches at once; default: 1, on a GPU 8"
    )
    group.add_argument("--cache_teacher", metavar="DIR", help="keep logits and pooled features of each view there")
    group.add_argument("--cache_gb", type=above_zero, help="gigabytes of --cache_teacher for this run; default: 16")
    kept_as = "type that --cache_teacher keeps; default: float32"
    group.add_argument("--cache_dtype", choices=["float32", "bf16", "fp16"], help=kept_as)


def settle_teacher_options(opt: argparse.Namespace, needed: bool, device: torch.device) -> None:
    """Raises UserError for what has no effect; needed: whether anything asks a teacher."""
    check_augment_options(opt)
    if opt.cache_teacher and (opt.teacher_ahead or 1) > 1:
        raise UserError(f"--teacher_ahead {opt.teacher_ahead}: with --cache_teacher it is 1")
    if opt.teacher_ahead is None:
        opt.teacher_ahead = 8 if device.type == "cuda" and not opt.cache_teacher else 1
    for key in ("cache_gb", "cache_dtype"):
        if getattr(opt, key) and not opt.cache_teacher:
            raise UserError(f"--{key} has no effect without --cache_teacher")
    if opt.cache_teacher and not needed:
        raise UserError(f"--cache_teacher: nothing asks a teacher in --distill {','.join(opt.distill)}")


def add_training_options(parser: Parser, epochs: int, decay: str) -> None:
    group = parser.add_argument_group("training")
    first(group.add_argument("--epochs", type=count, default=epochs, help="passes over the training set"))
    group.add_argument(
        "--opt", choices=optimizers.OPTIMIZERS, default="sgd", help="optimiser; lamb: timm's, needs the package timm"
    )
    rates = f"default: 0.05 or the network's own, without sgd {optimizers.RATE}"
    first(group.add_argument("--learning_rate", type=above_zero, help=f"learning rate; {rates}"))
    group.add_argument("--sched", choices=["step", "cosine"], default="step", help="how the rate falls, by the epoch")
    first(
        group.add_argument(
            "--lr_decay_epochs", type=epoch_list, default=decay, help="step: the rate falls after these epochs"
        )
    )
    group.add_argument("--lr_decay_rate", type=share, default=0.1, help="step: the rate falls to this much of it")
    group.add_argument("--min_lr", type=weight, metavar="LR", help="cosine: the rate after the last epoch; default: 0")
    group.add_argument(
        "--warmup_epochs", type=whole, default=0, metavar="N",
        help="epochs in which the rate rises evenly; they are part of the schedule (timm's default, no warmup_prefix)",
    )  # fmt: skip
    group.add_argument(
        "--warmup_lr", type=weight, metavar="LR", help="rate of the first of --warmup_epochs; default: 1e-05"
    )
    first(group.add_argument("--weight_decay", type=weight, default=5e-4, help="the optimiser's, of all weights"))
    group.add_argument("--momentum", type=share, default=0.9, help="momentum of sgd")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    group.add_argument("--clip_grad", type=above_zero, metavar="NORM", help="longest norm of all gradients together")
    group.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches of each step of the optimiser")
    group.add_argument(
        "--smoothing", type=share, default=0.0, metavar="EPS", help="label smoothing of the cross entropy"
    )
    group.add_argument(
        "--class_weights", choices=["balanced"],
        help="balanced: in the cross entropy a class weighs n / (K n_c), with n_c of the n training samples",
    )  # fmt: skip
    group.add_argument("--drop_path", type=share, metavar="RATE", help="stochastic depth of timm's networks")
    group.add_argument(
        "--ema", type=share, metavar="DECAY",
        help="a moving average of the weights and BatchNorm statistics is validated and saved in their place",
    )  # fmt: skip
    group.add_argument(
        "--early_stop", type=count, metavar="N", help="the training ends after N epochs without a better val_acc"
    )
    group.add_argument(
        "--sync_bn", action="store_true", help="under torchrun: BatchNorm over the whole batch of all processes"
    )
    group.add_argument(
        "--adjust_lr", action="store_true", help="under torchrun: learning rates times the number of processes"
    )


def start_log(opt: argparse.Namespace) -> None:
    if opt.run_log and os.environ.get("RANK", "0") == "0":
        with as_user_error(f"--run_log {opt.run_log}"):
            run_log.start(opt.run_log)


def settle_seed(opt: argparse.Namespace) -> None:
    """Also refuses what is wrong with it, and what has no effect."""
    if "/" in opt.trial and not opt.run_name:
        raise UserError(f"--trial {opt.trial}: is part of the run's name, expected one without /")
    if isinstance(opt.seed, list):
        raise UserError(f"--seed {','.join(map(str, opt.seed))}: several seeds need --sweep")
    settle_training(opt)
    if opt.seed is None:
        try:
            opt.seed = whole(opt.trial)
        except argparse.ArgumentTypeError:
            raise UserError(f"--trial {opt.trial}: not a number, so --seed must be given") from None


def settle_training(opt: argparse.Namespace) -> None:
    """Fills in what depends on other training options. Raises UserError for what has no effect, or cannot be."""
    if opt.nesterov and opt.opt != "sgd":
        raise UserError("--nesterov has no effect without --opt sgd")
    if opt.nesterov and not opt.momentum:
        raise UserError("--nesterov: expected a --momentum above 0 beside it")
    if opt.opt in optimizers.NEEDS_PACKAGE:
        optimizers.package()
    if opt.opt != "sgd":
        opt.learning_rate = opt.learning_rate or optimizers.RATE
    for key, has_effect, needed in (
        ("momentum", opt.opt == "sgd", "--opt sgd"),
        ("lr_decay_epochs", opt.sched == "step", "--sched step"),
        ("lr_decay_rate", opt.sched == "step" or "init_epochs" in opt, "--sched step"),  # or in an initialisation
    ):
        if key in opt.given and not has_effect:
            raise UserError(f"--{key} has no effect without {needed}")
    if opt.min_lr is not None and opt.sched != "cosine":
        raise UserError("--min_lr has no effect without --sched cosine")
    if opt.warmup_lr is not None and not opt.warmup_epochs:
        raise UserError("--warmup_lr has no effect without --warmup_epochs")
    if opt.warmup_epochs > opt.epochs:
        raise UserError(f"--warmup_epochs {opt.warmup_epochs}: expected at most the --epochs, {opt.epochs}")
    if opt.sched == "cosine" and opt.min_lr is None:
        opt.min_lr = 0.0
    if opt.warmup_epochs and opt.warmup_lr is None:
        opt.warmup_lr = 1e-5
