"""The options of train_student.py that say who is distilled into what, and how."""

from helper import parsing

from .base import find_method, method_meanings
from .chosen import Flags, described


def add_distillation_options(parser: parsing.Parser, flags: Flags) -> None:
    """flags: the keywords of each method."""
    how = {"dest": "help", "action": parsing.Help, "text": lambda _, names: described(names, flags)}
    how |= {"type": parsing.names_of(find_method), "nargs": "?", "metavar": "NAMES"}
    parsing.first(parser.add_argument("--help_method", **how, help="options and source of methods; alone: all names"))
    group = parser.add_argument_group("distillation")
    parsing.first(group.add_argument("--path_t", metavar="FILE", nargs="+", help="the teachers' checkpoints"))
    group.add_argument(
        "--model_t", "--teacher_name", type=parsing.network, nargs="+",
        help="the teachers' networks; default: as the checkpoint or its folder's name says",
    )  # fmt: skip
    group.add_argument("--pretrained_t", action="store_true", help="--model_t with its published weights, no --path_t")
    model_s = "the student's network; default: as in its file, else resnet8"
    parsing.first(group.add_argument("--model_s", "--student_name", type=parsing.network, help=model_s))
    group.add_argument("--path_s", metavar="FILE", help="checkpoint that the student starts from")
    group.add_argument("--pretrained_s", action="store_true", help="the student starts from its published weights")
    group.add_argument("--new_head", action="store_true", help="with a new classifier in the place of that of --path_s")
    names, methods = parsing.names_of(find_method), "method, or several as crd,at; --help_method lists all"
    parsing.first(group.add_argument("--distill", "--kd_method", type=names, default="kd", help=methods))
    of_ce, of_kd = "weight of the cross entropy; default: as published", "weight of KD; default: as published"
    of_methods = "weight of each method, as 0.8,1000; default: as published"
    parsing.first(group.add_argument("-r", "--gamma", type=parsing.weight, help=of_ce))
    parsing.first(group.add_argument("-a", "--alpha", type=parsing.weight, help=of_kd))
    parsing.first(group.add_argument("-b", "--beta", type=parsing.weight_list, help=of_methods))
    group.add_argument(
        "--weights", choices=["paper", "default"], default="paper",
        help="paper: what is left out is as published for the pair (configs/cifar100_pairs.csv), else the method's own",
    )  # fmt: skip
    group.add_argument("--init_epochs", type=parsing.whole, help="epochs of an initialisation; default: as published")
    group.add_argument(
        "--init_learning_rate", type=parsing.above_zero,
        help="learning rate of an initialisation; default: as published, else that of the training",
    )  # fmt: skip
    group.add_argument(
        "--init_lr_decay_epochs",
        type=parsing.epoch_list,
        help="its rate falls after these epochs; default: as published",
    )
    group.add_argument(
        "--warm_up", type=parsing.whole, metavar="N", help="epochs in which -b rises; default: as published"
    )
    group.add_argument(
        "--dot", type=parsing.share, metavar="DELTA",
        help="DOT: the momentum is DELTA less for the labels' gradient, and DELTA more for the others'",
    )  # fmt: skip
    group.add_argument(
        "--standardise", action="store_true", help="KD and methods see logits of mean 0, deviation 1 over the classes"
    )
    group.add_argument(
        "--ea_weights", type=parsing.above_zero, nargs="?", const=100.0, metavar="BOUND",
        help="KD and methods weigh samples by their entropies; BOUND: the largest, alone 100 as in EA-KD on KD and DKD",
    )  # fmt: skip
    group.add_argument("--mcl_tau", type=parsing.share, help="--ema, by the name that its paper gives it")
    group.add_argument("--mcl_every", type=parsing.count, default=1, help="steps between two moves of the slow weights")
    meanings = {name: method_meanings(find_method(name)) for name in flags}
    parsing.add_method_options(parser, flags, {"kd_T": "--temperature"}, meanings)
