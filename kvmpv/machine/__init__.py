"""The machine: vCPU threads, exit loop, address map, interrupts, kernel loading."""
