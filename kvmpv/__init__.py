"""kvmpv: Xen's paravirtualisation on KVM, driven from Python."""

__version__ = "0.1.0"
