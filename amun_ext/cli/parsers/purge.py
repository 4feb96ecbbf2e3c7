"""The arguments of amun purge."""

from pathlib import Path

from amun_ext.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "purge",
        "list files of amun with traces of the samples that a model has forgotten, and remove them with --yes",
        "examples:\n"
        "  amun purge --model forgotten/model.safetensors .\n"
        "  amun purge --model forgotten/model.safetensors . --yes --receipt purged.json\n\n"
        "Lists older models, unfinished work, adversarial examples, outputs of reference and shadow models, and pages\n"
        "with images. Files are recognised by their content, not by their names. Without --yes nothing is removed.",
    )
    command.add_argument("--model", type=Path, required=True, help="checkpoint that has forgotten the samples")
    command.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="folder to search, with its subfolders"
    )
    command.add_argument("--yes", action="store_true", help="remove the listed files")
    command.add_argument("--receipt", type=Path, help="JSON file to write, with --yes, with the list of removed files")
