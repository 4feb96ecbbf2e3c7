"""amun reproduce: the paper's experiments, each one command."""

import argparse

from amun_ext.cli.output_folder import check_folder, print_result
from amun_ext.distributed import by_first_rank
from amun_ext.experiments import reproduce
from amun_ext.validation import require


def run(options: argparse.Namespace) -> None:
    if options.list:
        width = max(map(len, reproduce.EXPERIMENTS))
        print("\n".join(f"{name.ljust(width)}  {row.title}" for name, row in reproduce.EXPERIMENTS.items()))
        return
    require(options.name is not None, "NAME", "given, or --list", "neither")
    if options.dry_run:
        print(reproduce.plan(options.name, options.scale, seeds=options.seeds, device=str(options.device)))
        return
    check_folder(options.out)
    result = reproduce.reproduce(
        options.name,
        options.scale,
        out=options.out,
        seeds=options.seeds,
        data_dir=options.data_dir,
        device=str(options.device),
        num_workers=options.workers,
        progress=not options.quiet,
    )
    by_first_rank(reproduce.write)(result, options.out)
    print_result(options, result, f"{options.name}.json, {options.name}.html and pictures into {options.out}")
