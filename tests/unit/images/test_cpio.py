"""Archives that the kernel, and cpio, unpack."""

from __future__ import annotations

from kvmpv.images.cpio import Archive


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = (mode, data[at : at + size])
        at = (at + size + 3) // 4 * 4


def test_everything_is_there_with_the_folders_above_it() -> None:
    archive = Archive()
    archive.file("a/b/c", b"12345", 0o755)
    archive.symlink("a/link", "/b")
    archive.device("dev/console", 0o600, 5, 1)
    assert entries(archive.data()) == {
        "a": (0o40755, b""),
        "a/b": (0o40755, b""),
        "a/b/c": (0o100755, b"12345"),
        "a/link": (0o120777, b"/b"),
        "dev": (0o40755, b""),
        "dev/console": (0o20600, b""),
    }


def test_same_entries_same_bytes() -> None:
    def one() -> bytes:
        archive = Archive()
        archive.directory("x", 0o1777)
        archive.file("y", b"z")
        return archive.data()

    assert one() == one()
