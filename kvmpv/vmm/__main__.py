"""Start the VMM: ``python -I -S .../kvmpv/vmm/__main__.py key=value ...``.

This file is run, not imported, so that nothing but the interpreter's core is loaded before it.
"""

import sys

sys.path.insert(0, __file__.rsplit("/", 3)[0])

from kvmpv.vmm.main import main

main(sys.argv[1:])
