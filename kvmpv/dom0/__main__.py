"""Start a worker: ``python -I -S .../kvmpv/dom0/__main__.py key=value ...``.

This file is run, not imported, so that nothing but the interpreter's core is loaded before it.
"""

import sys

sys.path.insert(0, __file__.rsplit("/", 3)[0])

from kvmpv.dom0.main import main

main(sys.argv[1:])
