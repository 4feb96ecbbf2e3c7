"""The arguments of the commands, one file each, which import no torch."""
