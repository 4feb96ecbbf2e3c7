"""The arguments of amun info."""

from amun_ext.cli.arguments import Commands, add_command


def add(commands: Commands) -> None:
    add_command(commands, "info", "print versions, available ops per device, and build flags")
