"""amun audit --by-request: the samples of each request in the ledger, and the table of its audits."""

import argparse
import math
from collections.abc import Mapping, Sequence

from amun_ext.auditing import Audit
from amun_ext.auditing.verdict import AUDITED
from amun_ext.data import Splits
from amun_ext.deletion import ledger
from amun_ext.deletion.keys import keys_of
from amun_ext.metrics.measures import Estimate
from amun_ext.report.tables import Column, Row, Table, interval, value, word
from amun_ext.validation import require


def requested_ids(options: argparse.Namespace, splits: Splits) -> dict[int, list[int]]:
    """Line of the ledger beside --model -> ids of its request that are still in the data; none without the option."""
    if not options.by_request:
        return {}
    given = [options.ids, options.ids_file, options.fraction, options.of_class, options.shadows]
    require(all(each is None for each in given), "--by-request", "given without samples and without --shadows", "both")
    expected = f"the {ledger.MODEL} of amun forget, beside its ledger"
    require(options.model.name == ledger.MODEL, "--model", expected, options.model)
    keys = keys_of(len(splits.train), splits.names)
    return {entry[ledger.NUMBER]: ledger.rows_of(entry, keys) for entry in ledger.read(options.model.parent)}


def table(ids: Mapping[int, Sequence[int]], audits: Mapping[int, Audit]) -> Table:
    """A row for each request, measured or not."""
    rows = []
    for number, some in ids.items():
        audit = audits.get(number)
        answer = "not measured: none of its samples is in the data" if audit is None else audit.verdict.answer
        found = Estimate(math.nan) if audit is None else audit.rows[AUDITED]["FT AUC"]
        rows.append(Row(str(number), [value(len(some), 0), interval(found.value, found.low, found.high), word(answer)]))
    return Table("requests", "request", [Column("samples"), Column("FT AUC"), Column("verdict", words=True)], rows)
