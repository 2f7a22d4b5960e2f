"""Distils a teacher into a student.

python train_student.py --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s resnet8x4 --distill crd
"""

import argparse
import copy
import functools
from typing import Any, NamedTuple

import torch
from torch import nn

import crd  # noqa: F401  registers its methods
import dataset
import models
from distiller_zoo import KD, Pair, chosen, find_method, method_names, method_options
from distiller_zoo.criterion import Criterion
from distiller_zoo.distillation import add_distillation_options
from distiller_zoo.dot import DOT
from helper import checkpoint, export, loading, networks, options, parallel, parsing, schedules, script, sweep
from helper.loops import Group, fit
from helper.run import Run, told_options
from helper.slow import SlowWeights
from helper.step import Stage
from helper.teachers import all_teachers, build_teachers, load_teachers
from helper.trainee import Networks, Trainee
from helper.util import UserError, as_user_error, command, seed_everything

METHOD_OPTIONS = {name: method_options(find_method(name)) for name in method_names()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parsing.Parser(__doc__, "Those of a method: --help_method crd.")
    add_distillation_options(parser, METHOD_OPTIONS)
    sweep.add_options(parser)
    options.add_teacher_options(parser)
    options.add_data_options(parser)
    options.add_augment_options(parser)
    options.add_training_options(parser, epochs=240, decay="150,180,210")
    options.add_run_options(parser)
    return parser.parse_args(argv)


class Student(NamedTuple):
    """One that is to be trained, and how."""

    job: sweep.Job
    opt: argparse.Namespace
    keywords: dict[str, dict[str, Any]]  # of each method in use
    needs_teacher: bool  # in its training, initialisation apart
    run: Run
    start: dict[str, Any]  # what --path_s holds


def settle(opt: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Fills in what depends on other options. Returns the keyword values of each method in use."""
    options.settle_seed(opt)
    networks.settle_data(opt)
    opt.model_s = opt.model_s or networks.named({"--test_only": opt.test_only, "--path_s": opt.path_s}) or "resnet8"
    opt.learning_rate = opt.learning_rate or models.sketch(opt.model_s).learning_rate
    return chosen.settle(opt, METHOD_OPTIONS)


def new_student(opt: argparse.Namespace, start: dict, data: dataset.ImageSet) -> nn.Module:
    """start: the weights that it starts from, or {}."""
    network = networks.create(opt.model_s, "--model_s", len(data.classes), loading.images_of(data), opt.drop_path)
    if opt.pretrained_s and start:
        return networks.begun(network, opt.model_s, start, "--pretrained_s", opt.model_s, None)
    return networks.begun(network, opt.model_s, start, "--path_s", opt.path_s, opt.new_head) if start else network


def build_student(job: Student, shared: sweep.Shared, augment: Any) -> tuple[Trainee, Any]:
    """The student, and the views of the images that its methods want."""
    opt, data, teachers, device = job.opt, shared.data, shared.teachers, shared.device
    # the seed is set here so that equal seeds give equal students whatever the method
    seed_everything(opt.seed)
    start = job.start
    student = new_student(opt, start, data)
    if opt.sweep:
        sweep.check_network(student, data.train_images.shape[-2:])
    student.to(device, memory_format=torch.channels_last)

    # method
    teacher = teachers[0] if teachers else student
    s, t = models.probe(student, data.train_images), models.probe(teacher, data.train_images)
    anew = functools.partial(new_student, opt, {}, data)
    label_loss = loading.label_loss(opt, data)
    pair = Pair(s, t, student, teacher, data.train_labels, opt.batch_size, opt.epochs, anew, label_loss)
    with as_user_error(f"--distill {','.join(opt.distill)}"):
        methods = {name: find_method(name)(pair, **job.keywords[name]) for name in opt.distill}
        kd = KD(pair, **job.keywords[KD.name]) if opt.alpha else None
        active = [method for method, beta in zip(methods.values(), opt.beta, strict=True) if beta]
        student.separate_heads = any(method.separate_heads for method in active)
        for method in methods.values():
            augment = method.views(augment)
            student = method.wrap(student)
    criterion = Criterion(opt.gamma, opt.alpha, kd, methods, opt.beta, opt.warm_up)
    criterion.standardise, criterion.ea_bound = opt.standardise, opt.ea_weights
    criterion.label_loss = label_loss
    criterion.to(device)
    student.to(device, memory_format=torch.channels_last)

    # slow weights, and networks whose predictions are kept
    fast = None if criterion.has_init else start.get("fast")  # an initialisation's result is not to be lost
    tau = opt.ema if opt.mcl_tau is None else opt.mcl_tau
    slow = SlowWeights(student, tau, opt.mcl_every, fast) if tau is not None else None
    beside = {f"teacher{n}": teacher for n, teacher in enumerate(teachers, 1)}
    if opt.path_s and opt.save_predictions:
        beside["start"] = copy.deepcopy(student)
    for method in methods.values():
        beside |= {name: net.to(memory_format=torch.channels_last) for name, net in method.beside().items()}

    # initialisation and training
    rule = {} if opt.dot is None else {"update": DOT}
    stages = [Stage("", opt.epochs, criterion, schedules.of(opt), job.needs_teacher, criterion.reads, **rule)]
    if criterion.has_init:
        rate = schedules.Steps(opt.init_learning_rate, opt.init_lr_decay_epochs, opt.lr_decay_rate)
        how = True, criterion.init_reads, criterion.init_runs_student
        stages.insert(0, Stage("init", opt.init_epochs, criterion.init, rate, *how))
    facts = loading.facts(opt.model_s, student, data)
    return Trainee(job.run, opt, Networks(student, criterion, slow, beside), stages, facts, device), augment


def prepare(argv: list[str] | None) -> tuple[list[Student], list[dict], torch.device]:
    """Settles all that can be wrong before anything is read but the teachers' files, whose content comes second."""
    jobs = sweep.jobs(parse, argv)
    first = jobs[0].opt
    options.start_log(first)
    for job in jobs:  # the teacher's name, which the published weights depend on, may be in its file
        with sweep.naming(job.item):
            before = argparse.Namespace(**vars(job.opt) | {"weights": "default"})
            chosen.check(before, settle(before))
        for key in ("dataset", "image_size", "model_s"):  # files may have said them, which need not be read again
            setattr(job.opt, key, getattr(before, key))
    device = parallel.start(first)
    if first.sweep:
        sweep.check_device(device)
    if parallel.is_distributed() and first.dot is not None:
        raise UserError("--dot: expected one process: gradients of two losses do not travel")
    states = load_teachers(first, told_options("student_model", "", first) if first.run_name else {})
    taught_by = checkpoint.digests("--path_t", first.path_t or [], states)
    keywords, needs = [], []
    for job in jobs:
        job.opt.model_t = first.model_t
        with sweep.naming(job.item):
            keywords.append(settle(job.opt))
            needs.append(chosen.check(job.opt, keywords[-1]))
    load_start = functools.cache(lambda path: checkpoint.load_if_there(path, "--path_s") if path else {})
    students = []
    for job, found, (needs_teacher, _) in zip(jobs, keywords, needs, strict=True):
        options.settle_teacher_options(job.opt, any(needed for _, needed in needs), device)
        run = Run("student_model", run_name(job.opt), job.opt, start=job.opt.path_s)
        if run.folder in [student.run.folder for student in students]:
            raise UserError(f"--sweep: two students have the folder {run.folder}; give --run_name in an item")
        start = weights_to_start_from(job.opt, run, load_start(job.opt.path_s))
        run.begins_with("path_t", taught_by)
        students.append(Student(job, job.opt, found, needs_teacher, run, start))
    return students, states, device


def run_name(opt: argparse.Namespace) -> str:
    teachers, methods, betas = "+".join(opt.model_t or ["None"]), ",".join(opt.distill), ",".join(map(str, opt.beta))
    name = f"S:{opt.model_s}_T:{teachers}_{opt.dataset}_{methods}_r:{opt.gamma}_a:{opt.alpha}_b:{betas}"
    return f"{name}_{opt.trial}"


def weights_to_start_from(opt: argparse.Namespace, run: Run, start: dict[str, Any]) -> dict[str, Any]:
    """Those of --pretrained_s, or what --path_s holds (start; {}: no such file, which a finished run does not need).

    The run notes them. Raises UserError where they are not there, or it began with others.
    """
    if opt.pretrained_s and not run.finished and opt.test_only is None:
        start = networks.published("--pretrained_s", opt.model_s)
        run.begins_with("pretrained_s", checkpoint.digests("--pretrained_s", [opt.model_s], [start]))
    if opt.path_s and not run.finished and (opt.test_only is None or not run.state):
        checkpoint.existing(opt.path_s, "--path_s", "last.pth")
    run.begins_with("path_s", checkpoint.digests("--path_s", [opt.path_s], [start]) if opt.path_s else [])
    return start


@command
def main(argv: list[str] | None = None) -> None:
    students, states, device = prepare(argv)
    opt, waiting = students[0].opt, [student for student in students if not student.run.finished]
    if opt.test_only is not None:
        return script.test_only(opt, waiting[0].run, opt.model_s, device, waiting[0].start)
    if waiting:
        states = all_teachers(opt, states, [student.run for student in waiting])
    script.already_done(opt, [student.run for student in students if student.run.finished])
    if waiting:
        train_students(waiting, states, device)
    if opt.sweep:
        sweep.report([(student.job, student.run) for student in students])


def train_students(students: list[Student], states: list[dict], device: torch.device) -> None:
    opt = students[0].opt
    data = loading.load_data(opt, [student.run for student in students])
    shared = sweep.Shared(opt, data, build_teachers(opt, states, data, device), device)

    def build(student: Student) -> tuple[Group, Trainee]:
        trainee, views = build_student(student, shared, shared.augment(student.opt.seed))
        return shared.group(trainee, views), trainee

    def finished(trainee: Trainee) -> None:
        export.save(trainee.run, trainee.network, shared.val_batches, loading.images_of(data), data.classes)

    if opt.sweep:
        return sweep.train(students, build, finished)
    group, trainee = build(students[0])
    fit(trainee, group)
    finished(trainee)


if __name__ == "__main__":
    main()
