"""A guest writes to its disk; the process behind the disk is killed, and the guest does not notice.

The kernel is that of firmware/: examples/devices.py build/firmware/refguest
"""

import os
import signal
import sys
import tempfile
import time

import kvmpv


def main(kernel: str) -> None:
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        disk = {"path": image.name, "format": "raw", "serial": "example"}
        command = "test=disk n=400 depth=8"
        with kvmpv.Domain(kernel=kernel, memory="16M", cmdline=command, disks=[disk]) as domain:
            while domain.control("devices")["0.state"] == "unused":
                time.sleep(0.01)
            for device in domain.devices():
                print(f"device {device['number']}: {device['kind']}, by a {device['backend']}")
            os.kill(int(domain.devices()[0]["pid"]), signal.SIGKILL)
            end = domain.wait_for_end()
        print(f"the guest ended by {end.kind}")
        image.seek(512 * 399)
        print(f"and its last block begins with {image.read(8)[::-1].hex()}")


if __name__ == "__main__":
    main(sys.argv[1])
