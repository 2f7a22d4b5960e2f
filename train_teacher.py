"""Trains a network alone.

python train_teacher.py --model resnet32x4 --dataset cifar100
"""

import argparse
from typing import Any

import torch

import models
from distiller_zoo.criterion import Criterion
from helper import checkpoint, loading, networks, options, parsing, schedules, script
from helper.run import Run, told_options
from helper.step import Stage
from helper.trainee import Networks, Trainee
from helper.util import UserError, command, seed_everything


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parsing.Parser(__doc__)
    default = "default: as in the --test_only file, else resnet110"
    parsing.first(parser.add_argument("--model", type=parsing.network, help=f"the network that is trained; {default}"))
    parser.add_argument("--pretrained", action="store_true", help="starts from the network's published weights")
    parser.add_argument("--initial_checkpoint", metavar="FILE", help="starts from these weights")
    parser.add_argument("--new_head", action="store_true", help="with a new classifier in the place of the file's")
    options.add_data_options(parser)
    options.add_augment_options(parser)
    options.add_training_options(parser, epochs=240, decay="150,180,210")
    options.add_run_options(parser)
    return parser.parse_args(argv)


def run_name(opt: argparse.Namespace, trial: str) -> str:
    return f"{opt.model}_{opt.dataset}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{trial}"


def resume_trial_0(opt: argparse.Namespace) -> None:
    """Without --trial: that is 0, which was the default here before, where there is such a run and none of trial 1."""
    if opt.config or opt.resume == "never" or "trial" in opt.given:
        return
    first, before = (told_options("models", run_name(opt, trial), opt).get("trial") for trial in "10")
    if before == "0" and first in (None, "0"):  # with --run_name both are the same run
        opt.trial, opt.seed = "0", opt.seed if "seed" in opt.given else 0
        print("--trial 0: a run is there that began with the former default")


def weights_to_start_from(opt: argparse.Namespace, run: Run) -> tuple[str, str, dict[str, Any]]:
    """Flag, file or network, and weights ({}: none), which the run notes. Raises UserError where they are not there."""
    if opt.pretrained and opt.initial_checkpoint:
        raise UserError("--pretrained: expected no --initial_checkpoint beside it")
    if opt.new_head and not opt.initial_checkpoint:
        raise UserError("--new_head has no effect without --initial_checkpoint")
    flag, path = ("--pretrained", opt.model) if opt.pretrained else ("--initial_checkpoint", opt.initial_checkpoint)
    if opt.test_only is not None or not path:
        return flag, path, {}
    start = networks.published(flag, path) if opt.pretrained else checkpoint.load(path, flag)
    run.begins_with(flag.removeprefix("--"), checkpoint.digests(flag, [path], [start]))
    return flag, path, start


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    device = script.begin(opt)
    opt.model = opt.model or networks.named({"--test_only": opt.test_only}) or "resnet110"
    opt.learning_rate = opt.learning_rate or models.sketch(opt.model).learning_rate
    resume_trial_0(opt)

    run = Run("models", run_name(opt, opt.trial), opt)
    if run.finished:
        return script.already_done(opt, [run])
    flag, path, start = weights_to_start_from(opt, run)
    if opt.test_only is not None:
        return script.test_only(opt, run, opt.model, device)
    data = loading.load_data(opt, [run])

    seed_everything(opt.seed)
    model = networks.create(opt.model, "--model", len(data.classes), loading.images_of(data), opt.drop_path)
    if start:
        model = networks.begun(model, opt.model, start, flag, path, opt.new_head or (None if opt.pretrained else False))
    model.to(device, memory_format=torch.channels_last)
    criterion = Criterion()
    criterion.label_loss = loading.label_loss(opt, data).to(device)
    stage = Stage("", opt.epochs, criterion, schedules.of(opt))
    facts, slow = loading.facts(opt.model, model, data), loading.slow_weights(opt, model)
    script.train(Trainee(run, opt, Networks(model, criterion, slow), [stage], facts, device), data)


if __name__ == "__main__":
    main()
