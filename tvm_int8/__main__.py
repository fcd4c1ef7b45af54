"""``python -m tvm_int8`` is the command ``tvm-int8``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
