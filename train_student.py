"""Distils a teacher into a student.

python train_student.py --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s resnet8x4 --distill crd
"""

import argparse

import torch

import crd  # noqa: F401  registers its methods
import dataset
import models
from distiller_zoo import KD, Pair, find_method, method_names, method_options
from distiller_zoo.criterion import Criterion
from helper import checkpoint, options
from helper.loops import Precision, Stage, fit, validate
from helper.run import Run
from helper.util import UserError, choose_device, command, mendable, seed_everything

METHOD_OPTIONS = {name: method_options(find_method(name)) for name in method_names()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = options.Parser(__doc__.splitlines()[0])
    group = parser.add_argument_group("distillation")
    group.add_argument("--path_t", metavar="FILE", help="the teacher's checkpoint")
    group.add_argument("--model_t", type=options.network, help="default: as the checkpoint or its folder's name says")
    group.add_argument("--model_s", type=options.network, default="resnet8")
    group.add_argument("--path_s", metavar="FILE", help="checkpoint that the student starts from")
    group.add_argument("--distill", type=options.names_of(find_method), default="kd", help=", ".join(method_names()))
    group.add_argument("-r", "--gamma", type=options.weight, help="weight of the cross entropy; default: as published")
    group.add_argument("-a", "--alpha", type=options.weight, help="weight of KD; default: as published")
    group.add_argument("-b", "--beta", type=options.weight_list, help="weight of each method; default: as published")
    group.add_argument("--init_epochs", type=options.whole, default=30, help="for methods with an initialisation")
    group.add_argument(
        "--init_learning_rate", type=options.above_zero, help="default: as published, else the learning rate"
    )
    options.add_method_options(parser, METHOD_OPTIONS)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=240, decay="150,180,210")
    options.add_run_options(parser, trial="1")
    return parser.parse_args(argv)


def settle(opt: argparse.Namespace) -> dict[str, dict]:
    """Fills in what depends on other options. Returns the keyword values of each method in use."""
    options.settle_seed(opt)
    methods = [find_method(name) for name in opt.distill]
    opt.distill = [method.name for method in methods]
    weights = [method.weights for method in methods]
    # several methods at once: the first one's r and a, each one's b
    opt.gamma = weights[0][0] if opt.gamma is None else opt.gamma
    opt.alpha = weights[0][1] if opt.alpha is None else opt.alpha
    opt.beta = [b for _, _, b in weights] if opt.beta is None else opt.beta
    if len(opt.beta) != len(methods):
        raise UserError(f"-b: expected a weight for each of {', '.join(opt.distill)}, found {len(opt.beta)}")
    if not (opt.gamma or opt.alpha or any(opt.beta)):
        raise UserError("-r, -a and -b are all 0: nothing would be trained")
    opt.learning_rate = opt.learning_rate or models.create_model(opt.model_s, 2).learning_rate
    published = [method.init_learning_rate for method in methods if method.init_learning_rate]
    opt.init_learning_rate = opt.init_learning_rate or min(published, default=opt.learning_rate)
    used = opt.distill + ([KD.name] if opt.alpha else [])
    return options.take_method_options(opt, {name: METHOD_OPTIONS[name] for name in used}, METHOD_OPTIONS)


def load_teacher(opt: argparse.Namespace) -> dict:
    """Reads the checkpoint and settles which network it is."""
    state = checkpoint.load(opt.path_t, "--path_t")
    opt.model_t = opt.model_t or checkpoint.find_name(state, opt.path_t, models.is_model)
    if opt.model_t is None:
        raise UserError(
            f"--path_t {opt.path_t}: neither the file nor its folder's name says its network; give --model_t"
        )
    return state


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    keywords = settle(opt)
    device = choose_device(opt.device)
    if opt.path_t is None and (opt.alpha or any(opt.beta) or any(find_method(n).init_loss for n in opt.distill)):
        raise UserError(f"--path_t: --distill {','.join(opt.distill)} needs a teacher's checkpoint")
    teacher_state = load_teacher(opt) if opt.path_t else None

    betas = ",".join(map(str, opt.beta))
    name = "S:{}_T:{}_{}_{}_r:{}_a:{}_b:{}_{}".format(
        opt.model_s, opt.model_t, opt.dataset, ",".join(opt.distill), opt.gamma, opt.alpha, betas, opt.trial
    )
    run = Run("student_model", name, opt)
    if run.finished:
        return run.already_done()

    # data
    data = options.load_data(opt)
    n_cls = len(data.classes)

    # networks; the seed is set here so that equal seeds give equal students whatever the method
    teacher = None
    if teacher_state:
        teacher = models.create_model(opt.model_t, n_cls)
        checkpoint.load_weights(teacher, opt.model_t, teacher_state, "--path_t", opt.path_t)
        teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    seed_everything(opt.seed)
    student = models.create_model(opt.model_s, n_cls)
    if opt.path_s:
        checkpoint.load_weights(student, opt.model_s, checkpoint.load(opt.path_s, "--path_s"), "--path_s", opt.path_s)
    student.to(device, memory_format=torch.channels_last)

    # method
    s = models.probe(student, data.train_images)
    pair = Pair(s, models.probe(teacher, data.train_images) if teacher else s, student, teacher, data.train_labels)
    with mendable(f"--distill {','.join(opt.distill)}"):
        methods = {name: find_method(name)(pair, **keywords[name]) for name in opt.distill}
        kd = KD(pair, **keywords[KD.name]) if opt.alpha else None
    criterion = Criterion(opt.gamma, opt.alpha, kd, methods, opt.beta).to(device)
    augment = dataset.Augment.of(data, device)
    for method in methods.values():
        augment = method.views(augment)
        student = method.wrap(student)
    batches = dataset.Batches(augment, data.train_labels.to(device), opt.batch_size, seed=opt.seed)
    val_batches = dataset.ValBatches.of(data, opt.batch_size, device)

    # initialisation and training
    stages = []
    if criterion.has_init:
        init = Stage("init", opt.init_epochs, criterion.init, opt.init_learning_rate, teacher=teacher)
        stages.append(init)
    asked = teacher if opt.alpha or any(opt.beta) else None
    stages.append(Stage("", opt.epochs, criterion, opt.learning_rate, opt.lr_decay_epochs, teacher=asked))
    facts = options.facts(opt.model_s, student, data)
    if teacher:
        facts["teacher_acc"] = validate(val_batches, teacher, Precision(opt.amp, device))["val_acc"]
        print(f"teacher accuracy: {facts['teacher_acc']:.2f} %")
    fit(
        run, stages, opt, student=student, criterion=criterion,
        batches=batches, val_batches=val_batches, device=device, facts=facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
