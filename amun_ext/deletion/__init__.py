"""Requests to forget: which samples, what is left without them, and a whole request from checkpoint to report."""

from amun_ext.deletion.checkpoint_record import Record
from amun_ext.deletion.ids import forget_ids, split
from amun_ext.deletion.request import Outcome, Request, forget

__all__ = ["Outcome", "Record", "Request", "forget", "forget_ids", "split"]
