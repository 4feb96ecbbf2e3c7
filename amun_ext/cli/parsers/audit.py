"""The arguments of amun audit."""

from pathlib import Path

from amun_ext.cli.arguments import CHECKPOINT, DATA, RESUMES, Commands, add_command, add_ids, add_options, count
from amun_ext.defaults import EQUIVALENCE_MARGIN


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "audit",
        "measure how well a model has forgotten, by membership inference, and give a verdict with its uncertainty",
        "examples:\n"
        "  amun audit --model forgotten/model.safetensors --original original.safetensors --data fashion-mnist-mini "
        "--retrain --out audit\n"
        "  amun audit --model forgotten/model.safetensors --data fashion-mnist-mini --fraction 0.1 "
        "--references references --out audit\n\n"
        "Writes audit.json, audit.md and audit.html into the folder --out, and with --retrain the retrained models.\n"
        "The verdict compares FT AUC with that of models retrained without the ids. Without such models it compares\n"
        "with 50, if the ids are a random draw and --references or --shadows are given. Otherwise the verdict is\n"
        '"cannot tell". The verdict "forgotten" needs --original: the audit must detect that the original was trained\n'
        "on the ids.\n"
        "exit status: 0 done, 1 failed, 2 bad input; with --fail-unless forgotten also\n"
        "10 not forgotten, 11 over-forgotten, 12 cannot tell",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=False)
    add_options(command, "--out")
    command.add_argument("--original", type=Path, help="checkpoint of the model before unlearning")
    command.add_argument(
        "--other-runs",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints unlearned as --model was, with other seeds, for KLoM (needs several retrained models); the "
        "verdict is on --model",
    )
    retrained = command.add_mutually_exclusive_group()
    retrained.add_argument(
        "--retrained-model",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints of models trained without the ids",
    )
    retrained.add_argument(
        "--retrain",
        type=count,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="train a model without the ids by the recipe in the checkpoint, or N models with different seeds, so that "
        "the verdict includes the variation between training runs",
    )
    add_options(command, "--init")
    command.add_argument("--references", type=Path, help="folder written by amun references")
    command.add_argument("--shadows", type=Path, help="folder written by amun shadows")
    command.add_argument(
        "--random-forget-set",
        action="store_true",
        help="state that the ids are a random draw from the training set (implied by --fraction)",
    )
    command.add_argument(
        "--equivalence-margin",
        type=float,
        default=EQUIVALENCE_MARGIN,
        help="FT AUC differences below this many points count as equal (default: %(default)s)",
    )
    command.add_argument(
        "--fail-unless", choices=["forgotten"], help="exit with a status other than 0 for any other verdict"
    )
    command.add_argument(
        "--by-request",
        action="store_true",
        help="also audit the samples of each request in the ledger beside --model, earlier ones too, with the same "
        "retrained and reference models, into folders request-N",
    )
    add_options(command, "--with-images", "--overwrite", "--tables", "--profile")
