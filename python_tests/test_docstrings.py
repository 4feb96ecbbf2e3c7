"""The examples in the docstrings of public names run, and give what they say."""

import doctest

import pytest

import amun_ext
from amun_ext import ops

OPS = {f"ops.{name}": getattr(ops, name) for name in ("attack_loss", "masked_sgd_")}
PUBLIC = {
    **{name: getattr(amun_ext, name) for name in amun_ext.__all__ if name != "ops"},
    **OPS,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_give_what_they_say(name) -> None:
    found = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert sum(len(each.examples) for each in found) >= 2, f"{name} has no example"
    for each in found:
        runner = doctest.DocTestRunner()
        said: list[str] = []
        runner.run(each, out=said.append)
        assert runner.failures == 0, "".join(said)
