"""Trains a network alone.

python train_teacher.py --model resnet32x4 --dataset cifar100
"""

import argparse

import torch

import dataset
import models
from distiller_zoo.criterion import Criterion
from helper import export, networks, options, parallel, schedules
from helper.loops import Group, fit
from helper.run import Run
from helper.step import Precision, Stage
from helper.trainee import Networks, Trainee
from helper.util import command, seed_everything
from helper.validation import test


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    default = "default: as in the --test_only file, else resnet110"
    options.first(parser.add_argument("--model", type=options.network, help=f"the network that is trained; {default}"))
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=240, decay="150,180,210")
    options.add_run_options(parser, trial="0")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    options.begin(opt)
    device = parallel.start(opt)
    networks.settle_data(opt)
    opt.model = opt.model or networks.named({"--test_only": opt.test_only}) or "resnet110"
    opt.learning_rate = opt.learning_rate or models.sketch(opt.model).learning_rate

    name = f"{opt.model}_{opt.dataset}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}"
    run = Run("models", name, opt)
    if run.finished:
        options.check_data_of(opt, [run])
        return run.already_done()

    data = options.load_data(opt, [run])
    val_batches = options.val_batches(opt, data, device)
    kind = len(data.classes), options.images_of(data)
    if opt.test_only is not None:
        model = networks.restore(opt.model, run.state, "--test_only", run.tested, *kind)
        return test(run, model, val_batches, Precision(opt.amp, device))

    seed_everything(opt.seed)
    model = networks.create(opt.model, "--model", *kind, opt.drop_path)
    model.to(device, memory_format=torch.channels_last)
    criterion = Criterion()
    criterion.label_loss = options.label_loss(opt, data).to(device)
    batches = options.train_batches(opt, data, dataset.augmentation(data, device), device)
    stage = Stage("", opt.epochs, criterion, schedules.of(opt))
    facts, slow = options.facts(opt.model, model, data), options.slow_weights(opt, model)
    trainee = Trainee(run, opt, Networks(model, criterion, slow), [stage], facts, device)
    fit(trainee, Group(batches, val_batches, options.test_batches(opt, data, device)))
    export.save(run, trainee.kept, val_batches, options.images_of(data), data.classes)


if __name__ == "__main__":
    main()
