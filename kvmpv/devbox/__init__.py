"""The dev box: a real KVM host on any machine, QEMU emulating AMD's SVM around Debian's kernel."""
