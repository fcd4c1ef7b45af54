"""Turn errors of TVM, ONNX and torch into the few words of them a user can read."""

from __future__ import annotations

import re

_LONGEST = 200
_DUMPS = re.compile(r"ir\.Op\(|Metadata omitted|R\.Tensor|^\s*#|^Traceback|^File ")


def reason_of(error: BaseException) -> str:
    r"""One readable line of an error's message: no dumps of the IR, no constructors around numbers and shapes.

    Examples
    --------
    >>> reason_of(ValueError("In ir.Op(span=None...\nthe LHS has shape R.shape([2, 3]) and T.int64(4) rows"))
    'the LHS has shape [2, 3] and 4 rows'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    readable = [line for line in lines if line and not _DUMPS.search(line)]
    if not readable:
        return type(error).__name__
    line = re.sub(r"(?:T\.int64|R\.shape)\((.*?)\)", r"\1", readable[0])
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rsplit(' ', 1)[0]} ..."
