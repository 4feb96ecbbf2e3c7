"""The arguments of amun tune."""

from amun_ext.cli.arguments import (
    CHECKPOINT,
    DATA,
    RESUMES,
    Commands,
    add_command,
    add_ids,
    add_options,
    add_recipe,
)
from amun_ext.defaults import MAX_ACCURACY_DROP, OBJECTIVES, names
from amun_ext.recipe import TUNING


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "tune",
        "tune the options of unlearning methods, on a random proxy forget set instead of the request itself",
        "examples:\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out tuned\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --ids-file ids.csv --methods amun,rl,ft "
        "--objective retrain --trials 50 --workers 4 --out tuned\n\n"
        "Writes tuned.json (for amun forget --tuned and amun compare --tuned), trials.json and tuning.html into the\n"
        "folder --out. Run the same command again to resume, or with more --trials to add trials. Trials are measured\n"
        "on half of the test set, drawn by --seed; the other half is left for measuring the result.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 no trial of some method keeps the accuracy",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    add_ids(command, required=True)
    add_options(command, "--out")
    tunable = [name for name in names("methods") if name != "retrain"]
    command.add_argument(
        "--methods",
        default="amun",
        help=f"some of {', '.join(tunable)} (default: %(default)s)",
    )
    command.add_argument("--trials", type=int, default=30, help="trials per method (default: %(default)s)")
    command.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="held-out",
        help="held-out: match the results expected of retraining, estimated from the accuracy on held-out data; "
        "retrain: match a model retrained for this (default: %(default)s)",
    )
    command.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=MAX_ACCURACY_DROP,
        help="points of held-out accuracy that a trial may lose (default: %(default)s)",
    )
    command.add_argument("--without-retain", action="store_true", help="fine-tune without the retain set")
    add_options(command, "--targets", "--held-out", "--tables", "--workers", "--init")
    tuned = ("lr", "schedule")
    add_recipe(command, "fine-tuning (lr and schedule are tuned)", TUNING, tuned)
