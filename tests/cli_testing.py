"""Call the command line in this process, and look at what it prints."""

from __future__ import annotations

from tvm_int8.cli import main


def run(capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line_error(result, *words) -> None:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tvm-int8: error: ")
    for word in words:
        assert word in err
