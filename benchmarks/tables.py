"""Writes the tables of the README and of docs/ from results/*.json: between <!-- name --> and <!-- end -->."""

import re
from pathlib import Path

import tables_audit
import tables_gpu
import tables_requests
import tables_search
import tables_unlearning
from common import read

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# page -> name of the block -> name of the result, and its table
PAGES = {
    ROOT / "README.md": {"demo": ("demo", tables_unlearning.demo_once)},
    DOCS / "guides/cost.md": {
        "plan": ("plan", tables_requests.plan),
        "micro_batches": ("micro_batches", tables_requests.micro_batches),
        "million": ("million", tables_requests.million),
    },
    DOCS / "guides/search.md": {"search in short": ("search", tables_search.search_in_short)},
    DOCS / "benchmarks/index.md": {"kills": ("kills", tables_audit.kills)},
    DOCS / "benchmarks/search.md": {
        "search summary": ("search", tables_search.search_summary),
        "search": ("search", tables_search.search),
        "distances": ("distances", tables_search.distances),
        "linear distances": ("distances", tables_search.linear_distances),
        "search_step": ("search_step", tables_search.search_step),
        "memory": ("memory", tables_search.memory),
    },
    DOCS / "benchmarks/unlearning.md": {
        "demo": ("demo", tables_unlearning.demo),
        "compare": ("compare", tables_unlearning.compare),
        "distill": ("distill", tables_unlearning.distill),
        "distill_mixed": ("distill_mixed", tables_unlearning.distill_untimed),
        "distill_large": ("distill_large", tables_unlearning.distill_untimed),
        "distill_folds": ("distill_folds", tables_unlearning.folds),
        "resnet": ("resnet", tables_unlearning.resnet),
        "unlearning_methods": ("unlearning_methods", tables_unlearning.methods),
        "forget": ("forget", tables_unlearning.forget),
        "tuning": ("tuning", tables_unlearning.tuning),
        "unlearn": ("unlearn", tables_unlearning.unlearn),
        "request": ("request", tables_unlearning.request),
        "masked_sgd": ("masked_sgd", tables_unlearning.masked_sgd),
    },
    DOCS / "benchmarks/requests.md": {
        "copies": ("copies", tables_requests.copies),
        "unfamiliar": ("chain", tables_requests.unfamiliar),
        "chain": ("chain", tables_requests.chain),
        "bookkeeping": ("bookkeeping", tables_requests.bookkeeping),
    },
    DOCS / "benchmarks/audit.md": {
        "audit": ("audit", tables_audit.audit),
        "shadows": ("shadows", tables_audit.shadows),
        "references": ("references", tables_audit.references),
        "training_step": ("training_step", tables_audit.training_step),
        "reference_precision": ("reference_precision", tables_audit.reference_precision),
        "rmia": ("rmia", tables_audit.rmia),
    },
    DOCS / "experiments/table5.md": {"trades": ("trades", tables_unlearning.trades)},
    DOCS / "benchmarks/gpu.md": {
        "kernels": ("kernels", tables_gpu.kernels),
        "gpu/ops": ("gpu/ops", tables_gpu.gpu_ops),
        "gpu/search": ("gpu/search", tables_gpu.gpu_search),
        "gpu/paper": ("gpu/paper", tables_gpu.gpu_paper),
    },
}


def write_pages() -> None:
    for page, blocks in PAGES.items():
        text = page.read_text()
        for name, (result_name, table) in blocks.items():
            if not (result := read(result_name)):
                continue
            new = f"<!-- {name} -->\n{table(result)}\n<!-- end -->"
            text, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, new=new: new, text, flags=re.S)
            if count != 1:
                raise ValueError(f"{page} must have one block for {name}, got {count}")
        page.write_text(text)
