"""The arguments of amun ledger."""

from pathlib import Path

from amun_ext.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "ledger",
        "show the requests that led to a model, verify that no entry was changed, moved or removed, or write a page",
        "examples:\n"
        "  amun ledger page forgotten --audit audit\n"
        "  amun ledger verify forgotten\n"
        "  amun ledger show forgotten --key train/anna/7.png\n\n"
        "Reads ledger.jsonl in a folder written by amun forget. Each line has the hash of the previous line and of\n"
        "the models before and after the request; the last line belongs to the model in the folder. Keys of samples\n"
        "are hashed: --key finds the requests for a sample by its key, which is the path of its image file, or row N\n"
        "for other data.\n"
        "The page is record.html in that folder: what was done, what was measured, what it does not show.\n"
        "exit status: 0 valid, 2 not valid",
    )
    command.add_argument("action", choices=("show", "verify", "page"))
    command.add_argument("folder", type=Path, help="folder with the model and its ledger")
    command.add_argument("--public-key", type=Path, help="PEM file: require that its owner has signed every line")
    command.add_argument("--audit", type=Path, help="folder of amun audit of this model, for the page")
    command.add_argument("--key", help="show only the requests for this sample")
