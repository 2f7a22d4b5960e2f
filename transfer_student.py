"""Linear probe: a new classifier on a frozen network, on another data set.

python transfer_student.py --path_s save/student_model/RUN/last.pth --dataset cifar10

The schedule is the published one: 120 epochs, rate 0.05, a tenth of it after 30, 60 and 90 (2407.11802, 1910.10699).
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import models
from distiller_zoo.criterion import Criterion
from helper import checkpoint, loading, networks, options, parsing, schedules, script
from helper.run import Run, told_options
from helper.step import Stage
from helper.trainee import Networks, Trainee
from helper.util import UserError, command, seed_everything


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parsing.Parser(__doc__)
    add = parser.add_argument_group("probe").add_argument
    model_s = "its network; default: as the checkpoint or its folder's name says"
    bn = "eval: the frozen network stays as it is; train: its BatchNorm statistics drift, as published"
    parsing.first(add("--path_s", metavar="FILE", required=True, help="checkpoint of the probed network; required"))
    parsing.first(add("--model_s", type=parsing.network, help=model_s))
    parsing.first(add("--probe_bn", choices=["eval", "train"], default="eval", help=bn))
    options.add_data_options(parser)
    options.add_augment_options(parser)
    options.add_training_options(parser, epochs=120, decay="30,60,90")
    options.add_run_options(parser)
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    device = script.begin(opt)
    if opt.drop_path and opt.probe_bn == "eval":
        raise UserError("--drop_path has no effect with --probe_bn eval: the network stays in eval mode")
    source = Path(opt.path_s).absolute().parent.name
    name = f"{source}_to_{opt.dataset}_{opt.probe_bn}_{opt.trial}"
    state = checkpoint.load_if_there(opt.path_s, "--path_s")  # a finished run does not need it
    opt.model_s = opt.model_s or checkpoint.find_name(state, opt.path_s, models.is_model)
    if not (opt.model_s or state):
        told = told_options("transfer", name, opt).get("model_s")
        opt.model_s = told if isinstance(told, str) else None
    if opt.model_s is None:
        checkpoint.existing(opt.path_s, "--path_s", "last.pth")
        raise UserError(
            f"--path_s {opt.path_s}: neither the file nor its folder's name says its network; give --model_s"
        )
    sketch = networks.sketch(opt.model_s, state, "--path_s", opt.path_s) if state else models.sketch(opt.model_s)
    opt.learning_rate = opt.learning_rate or sketch.learning_rate

    run = Run("transfer", name, opt)
    run.begins_with("path_s", checkpoint.digests("--path_s", [opt.path_s], [state]))
    if run.finished:
        return script.already_done(opt, [run])
    checkpoint.existing(opt.path_s, "--path_s", "last.pth")
    if opt.test_only is not None:
        return script.test_only(opt, run, opt.model_s, device)
    data = loading.load_data(opt, [run])

    # the network as it was trained, frozen, with a new classifier
    seed_everything(opt.seed)
    images = loading.images_of(data)
    n_source = checkpoint.class_count(sketch, state, "--path_s", opt.path_s)
    student = networks.create(opt.model_s, "--model_s", n_source, images, opt.drop_path)
    student = networks.fill(student, opt.model_s, state, "--path_s", opt.path_s, images)
    student.requires_grad_(False)
    student.reset_head(len(data.classes))
    for head in map(student.get_submodule, student.head_names):
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    student.to(device, memory_format=torch.channels_last)

    criterion = Criterion()
    criterion.label_loss = loading.label_loss(opt, data).to(device)
    train_mode = opt.probe_bn == "train"
    stage = Stage("", opt.epochs, criterion, schedules.of(opt), train_mode=train_mode)
    facts, slow = loading.facts(opt.model_s, student, data), loading.slow_weights(opt, student)
    script.train(Trainee(run, opt, Networks(student, criterion, slow), [stage], facts, device), data)


if __name__ == "__main__":
    main()
