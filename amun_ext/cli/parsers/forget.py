"""The arguments of amun forget."""

from pathlib import Path

from amun_ext.cli.arguments import CHECKPOINT, DATA, RESUMES, Commands, add_command, add_ids, add_options, percent
from amun_ext.cli.parsers.method import add_method


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "forget",
        "unlearn some training samples, by AMUN or (with --targets) by distillation, and report how well it worked",
        "examples:\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17,40-60 --out forgotten\n"
        "  amun forget --model net.pt --arch my_net:build --data my_data:load --ids-file ids.csv --out forgotten\n\n"
        "Writes model.safetensors, report.json, report.html, record.json and ledger.jsonl\n"
        "into the folder --out. A later request starts from that model. Run the same command again to resume; if the\n"
        "request is done, this does nothing. The result of another request is replaced only with --overwrite.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples could not be forgotten (their ids are printed);\n"
        "without a result: 4 the model is unchanged, 5 its test accuracy is below --floor",
        RESUMES,
    )
    add_options(command, *DATA, *CHECKPOINT)
    which = add_ids(command, required=True)
    which.add_argument(
        "--pending", type=Path, help="list of amun request: all its requests, which are then removed from it"
    )
    add_options(command, "--out", "--include-duplicates", "--duplicate-distance")
    add_method(command)
    command.add_argument("--retrain", action="store_true", help="also retrain from scratch, for comparison")
    command.add_argument(
        "--floor",
        type=percent,
        metavar="PERCENT",
        help="write no result if the test accuracy of the new model is lower than this",
    )
    command.add_argument(
        "--sign-key", type=Path, help="Ed25519 private key in a PEM file, to sign the new line of the ledger"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be done and how long it would take; write nothing"
    )
    add_options(command, "--init", "--with-images", "--overwrite", "--tables", "--profile")
    command.set_defaults(replays=False)
