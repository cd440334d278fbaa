"""What a server or a program said, as it may be shown: one line, printable, short.

For people only: what is parsed is what was said.
"""

from xenlb.foreign.printable import first_line as shown

__all__ = ["shown"]
