"""For the Python reference: the comment behind a field of a class becomes its description."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe


class Fields(griffe.Extension):
    def on_class_instance(self, *, node: Any, cls: griffe.Class, **_: Any) -> None:
        if not isinstance(node, ast.ClassDef) or cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        lines = Path(str(cls.filepath)).read_text().splitlines()
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        told = {each.target.id: re.search(r"  # (.*)$", lines[each.end_lineno - 1]) for each in fields}
        rows = "\n".join(f"    {name}: {comment[1]}" for name, comment in told.items() if comment)
        if rows:
            cls.docstring.value += f"\n\nAttributes:\n{rows}"
