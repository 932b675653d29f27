"""Tests run the sources as Python: they replace parts of them, which machine code does not allow.

`test_native.py` compares the two.
"""

import os

os.environ["WORKBENCH_NATIVE"] = "0"
