"""Distils a teacher into a student.

python train_student.py --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s resnet8x4 --distill crd
"""

import argparse
import copy

import torch

import crd  # noqa: F401  registers its methods
import dataset
import models
from distiller_zoo import KD, Distiller, Pair, find_method, method_names, method_options
from distiller_zoo.criterion import Criterion
from helper import checkpoint, export, options, parallel
from helper.loops import Precision, Stage, fit, test, validate
from helper.run import Run
from helper.slow import SlowWeights
from helper.teacher_cache import open_caches
from helper.util import UserError, command, mendable, seed_everything

METHOD_OPTIONS = {name: method_options(find_method(name)) for name in method_names()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = options.Parser(__doc__.splitlines()[0])
    group = parser.add_argument_group("distillation")
    group.add_argument("--path_t", metavar="FILE", nargs="+", help="the teachers' checkpoints")
    group.add_argument(
        "--model_t", "--teacher_name", type=options.network, nargs="+",
        help="default: as the checkpoint or its folder's name says",
    )  # fmt: skip
    group.add_argument("--pretrained_t", action="store_true", help="--model_t with its published weights, no --path_t")
    group.add_argument("--model_s", "--student_name", type=options.network, default="resnet8")
    group.add_argument("--path_s", metavar="FILE", help="checkpoint that the student starts from")
    group.add_argument(
        "--distill", "--kd_method", type=options.names_of(find_method), default="kd", help=", ".join(method_names())
    )
    group.add_argument("-r", "--gamma", type=options.weight, help="weight of the cross entropy; default: as published")
    group.add_argument("-a", "--alpha", type=options.weight, help="weight of KD; default: as published")
    group.add_argument("-b", "--beta", type=options.weight_list, help="weight of each method; default: as published")
    group.add_argument("--init_epochs", type=options.whole, help="of an initialisation; default: as published")
    group.add_argument(
        "--init_learning_rate", type=options.above_zero, help="default: as published, else the learning rate"
    )
    group.add_argument("--init_lr_decay_epochs", type=options.epoch_list, help="default: as published")
    group.add_argument("--mcl_tau", type=options.share, help="keep slow weights: this much of them stays each time")
    group.add_argument("--mcl_every", type=options.count, default=1, help="steps between two moves of the slow weights")
    options.add_method_options(parser, METHOD_OPTIONS, {"kd_T": "--temperature"})
    options.add_cache_options(parser)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=240, decay="150,180,210")
    options.add_run_options(parser, trial="1")
    return parser.parse_args(argv)


def settle(opt: argparse.Namespace) -> dict[str, dict]:
    """Fills in what depends on other options. Returns the keyword values of each method in use."""
    options.begin(opt)
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
    opt.learning_rate = opt.learning_rate or models.sketch(opt.model_s).learning_rate
    if opt.init_epochs is None:
        opt.init_epochs = max((m.init_epochs for m in methods if m.init_loss), default=Distiller.init_epochs)
    published = [method.init_learning_rate for method in methods if method.init_learning_rate]
    if opt.init_lr_decay_epochs is None:
        opt.init_lr_decay_epochs = [epoch for method in methods for epoch in method.init_decay_epochs]
    opt.init_learning_rate = opt.init_learning_rate or min(published, default=opt.learning_rate)
    used = opt.distill + ([KD.name] if opt.alpha else [])
    if opt.alpha and "kd_T" not in opt:
        opt.kd_T = methods[0].temperature
    return options.take_method_options(opt, {name: METHOD_OPTIONS[name] for name in used}, METHOD_OPTIONS)


def load_teachers(opt: argparse.Namespace) -> list[dict]:
    """Reads the teachers' weights and settles which networks they are."""
    if opt.pretrained_t:
        opt.model_t = [models.at_own_size(name) for name in opt.model_t]
        with mendable("--pretrained_t"):
            return [models.published_weights(name) for name in opt.model_t]
    states = [checkpoint.load(path, "--path_t") for path in opt.path_t]
    if opt.model_t and len(opt.model_t) != len(states):
        raise UserError(f"--model_t: expected a network for each of {len(states)} --path_t, found {len(opt.model_t)}")
    found = [checkpoint.find_name(*state, models.is_model) for state in zip(states, opt.path_t, strict=True)]
    opt.model_t = opt.model_t or found
    if None in opt.model_t:
        path = opt.path_t[opt.model_t.index(None)]
        raise UserError(f"--path_t {path}: neither the file nor its folder's name says its network; give --model_t")
    for name, path in zip(opt.model_t, opt.path_t, strict=True):
        with mendable(f"--path_t {path}"):
            models.sketch(name)
    return states


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    keywords = settle(opt)
    device = parallel.start(opt)
    classes = [find_method(name) for name in opt.distill]
    weighed = [cls for cls, beta in zip(classes, opt.beta, strict=True) if beta]
    if opt.pretrained_t and (opt.path_t or not opt.model_t):
        raise UserError("--pretrained_t: expected --model_t beside it, and no --path_t")
    taught = opt.alpha or any(cls.needs_teacher(keywords[cls.name]) for cls in weighed)
    flag, given = ("--pretrained_t", opt.model_t) if opt.pretrained_t else ("--path_t", opt.path_t or [])
    asked = taught or any(cls.init_loss for cls in classes)
    if not given and asked and opt.test_only is None:
        raise UserError(f"--path_t: --distill {','.join(opt.distill)} needs a teacher's checkpoint")
    for cls in [cls for cls in classes if cls in weighed or cls.init_loss]:
        if len(given) > 1 and not cls.all_teachers:
            raise UserError(f"{flag}: {cls.name} takes one teacher, found {len(given)}")
        if opt.cache_teacher and cls.teacher_maps:
            raise UserError(f"--cache_teacher: {cls.name} reads the teacher's maps, which are not kept")
    options.check_cache(opt, asked)
    teacher_states = load_teachers(opt) if given else []

    methods, betas = ",".join(opt.distill), ",".join(map(str, opt.beta))
    name = f"S:{opt.model_s}_T:{'+'.join(opt.model_t or ['None'])}_{opt.dataset}_{methods}"
    name += f"_r:{opt.gamma}_a:{opt.alpha}_b:{betas}_{opt.trial}"
    run = Run("student_model", name, opt, start=opt.path_s)
    if run.finished:
        return run.already_done()

    # data
    data = options.load_data(opt)
    n_cls, images = len(data.classes), options.images_of(data)

    # networks; the seed is set here so that equal seeds give equal students whatever the method
    teachers = []
    for state, model_t, path in zip(teacher_states, opt.model_t or [], given, strict=False):
        with mendable(f"{flag} {path}"):
            teacher = models.create_model(model_t, n_cls, images)
        checkpoint.load_weights(teacher, model_t, state, flag, path)
        teachers.append(teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False))
    seed_everything(opt.seed)
    student = models.create_model(opt.model_s, n_cls, images)
    start = checkpoint.load(opt.path_s, "--path_s") if opt.path_s else {}
    if opt.path_s:
        checkpoint.load_weights(student, opt.model_s, start, "--path_s", opt.path_s)
    student.to(device, memory_format=torch.channels_last)

    # method
    teacher = teachers[0] if teachers else student
    s, t = models.probe(student, data.train_images), models.probe(teacher, data.train_images)
    pair = Pair(s, t, student, teacher, data.train_labels)
    with mendable(f"--distill {','.join(opt.distill)}"):
        methods = {name: find_method(name)(pair, **keywords[name]) for name in opt.distill}
        kd = KD(pair, **keywords[KD.name]) if opt.alpha else None
    criterion = Criterion(opt.gamma, opt.alpha, kd, methods, opt.beta).to(device)
    augment = dataset.augmentation(data, device)
    with mendable(f"--distill {','.join(opt.distill)}"):
        for method in methods.values():
            augment = method.views(augment)
            student = method.wrap(student)
    batches, val_batches = options.batches(opt, data, augment, device)
    if opt.test_only is not None:
        return test(run, opt.model_s, student, val_batches, opt, device)

    fast = None if criterion.has_init else start.get("fast")  # an initialisation's result is not to be lost
    slow = SlowWeights(student, opt.mcl_tau, opt.mcl_every, fast) if opt.mcl_tau is not None else None
    beside = {f"teacher{n}": teacher for n, teacher in enumerate(teachers, 1)}
    if opt.path_s and opt.save_predictions:
        beside["start"] = copy.deepcopy(student)

    # initialisation and training
    by = teachers, open_caches(opt, teachers, augment, data, device) if opt.cache_teacher else []
    stages = []
    if criterion.has_init:
        rate, decay = opt.init_learning_rate, opt.init_lr_decay_epochs
        stages.append(Stage("init", opt.init_epochs, criterion.init, rate, decay, *by, criterion.init_runs_student))
    by = by if taught else ()
    stages.append(Stage("", opt.epochs, criterion, opt.learning_rate, opt.lr_decay_epochs, *by))
    facts = options.facts(opt.model_s, student, data)
    if teachers:
        found = [validate(val_batches, teacher, Precision(opt.amp, device))["val_acc"] for teacher in teachers]
        facts["teacher_acc"] = found if len(found) > 1 else found[0]
        print("teacher accuracy: " + ", ".join(f"{acc:.2f} %" for acc in found))
    fit(
        run, stages, opt, student=student, criterion=criterion,
        batches=batches, val_batches=val_batches, device=device, facts=facts,
        slow=slow, beside=beside,
    )  # fmt: skip
    export.save(run, slow.network if slow else student, val_batches, images, data.classes)


if __name__ == "__main__":
    main()
