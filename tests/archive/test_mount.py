"""A real FUSE mount, in a process of its own, and the parts it is made of."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from holdfast.archive import mount
from holdfast.archive.extents import Bounded, CachedChunks, RandomFile, data_bytes
from holdfast.archive.views import COUNTED_LINKS, Library, Shared, Source, View
from holdfast.errors import Damaged, HoldfastError, KeyCannotRead, UsageError
from holdfast.repository.contents import hole
from holdfast.repository.format import ID_SIZE, Entry, Totals
from holdfast.repository.snapshots import Filter
from tests.archive.making import KEY_TEXT, House
from tests.support.commands import Commands
from tests.support.components import missing, need, need_module
from tests.support.trees import MIB, differences, everything, noise, sparse, write

WAIT_S = 20.0


class Mounted:
    """A mount of a house's repository, and the process that serves it."""

    def __init__(self, commands: Commands, folder: Path, words: tuple[object, ...]) -> None:
        self.folder = folder
        self._said = folder.parent / f"{folder.name} said"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                commands.command("mount", folder, *words), env=commands.environment, stdout=said, stderr=said
            )

    @property
    def latest(self) -> Path:
        return self.folder / "latest"

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def begin(self) -> None:
        self.wait(lambda: self.process.poll() is not None or "Mounted at" in self.said)
        assert self.process.poll() is None, self.said

    def unmount(self) -> int:
        """The exit status after unmounting."""
        subprocess.run(["fusermount3", "-u", self.folder], check=True)
        return self.process.wait(WAIT_S)


@contextmanager
def mounted(house: House, *words: object) -> Iterator[Mounted]:
    """The house's repository, mounted for the time of the block; skipped where FUSE is missing."""
    need("fusermount3")
    need_module("mfusepy")
    try:
        os.close(os.open(mount.FUSE_DEVICE, os.O_RDWR))
    except OSError as e:
        missing(f"{mount.FUSE_DEVICE} cannot be used: {os.strerror(e.errno or 0)}")
    folder = house.folder / "mounted"
    folder.mkdir(exist_ok=True)
    made = Mounted(commands(house), folder, words)
    try:
        made.begin()
        yield made
    finally:
        if made.process.poll() is None:
            subprocess.run(["fusermount3", "-u", "-z", folder], check=False)
        try:
            made.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            made.process.kill()


def commands(house: House) -> Commands:
    key = house.folder / "key"
    key.write_text(KEY_TEXT)
    return Commands(Path(house.repo.storage.place), key, house.folder)


def spoil(house: House, at: float = 0.5) -> None:
    """Change one byte in the middle of the largest pack."""
    pack = max(house.packs(), key=lambda name: house.packs()[name])
    path = house.path_of(pack)
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


# -- what is seen ------------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_a_mount_shows_everything_as_it_was(house: House) -> None:
    tree = everything(house.folder / "tree")
    house.back_up(tree)
    with mounted(house) as m:
        assert differences(tree, m.folder / "snapshots" / os.readlink(m.latest).rpartition("/")[2]) == []
        assert m.unmount() == 0
        assert "holdfast:" not in m.said


def test_names_and_links_to_other_places_are_shown_as_they_are(house: House) -> None:
    tree = write(house.folder / "tree", {"a/b.txt": "text", "link": "->a/b.txt", "out": "->/etc/passwd"})
    os.link(tree / "a/b.txt", tree / "again")
    house.back_up(tree)
    with mounted(house) as m:
        assert (m.latest / "link").read_text() == "text"
        assert os.readlink(m.latest / "out") == "/etc/passwd"
        one, other = (m.latest / "a/b.txt").stat(), (m.latest / "again").stat()
        assert (one.st_ino, one.st_nlink) == (other.st_ino, 2)
        assert (m.latest / "a").stat().st_ino != one.st_ino


def test_snapshots_are_found_by_time_id_host_and_tag(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    first = house.back_up(tree, tags=("red", "odd/name"))
    write(tree, {"file": "2!"})
    second = house.back_up(tree, host="other")
    with mounted(house) as m:
        assert sorted(os.listdir(m.folder)) == ["hosts", "ids", "latest", "snapshots", "tags"]
        assert (m.folder / "ids" / first.snapshot_id[:8] / "file").read_text() == "1"
        assert (m.folder / "ids" / second.snapshot_id[:8] / "file").read_text() == "2!"
        assert (m.folder / "hosts/host/latest/file").read_text() == "1"
        assert (m.folder / "hosts/other/latest/file").read_text() == "2!"
        assert sorted(os.listdir(m.folder / "tags")) == ["odd_name", "red"]
        assert (m.folder / "tags/red/latest/file").read_text() == "1"
        assert (m.latest / "file").read_text() == "2!"
        names = sorted(os.listdir(m.folder / "snapshots"))
        assert names[-1] == "latest" and len(names) == 3
        assert (m.folder / "snapshots" / names[0] / "file").read_text() == "1"


def test_only_the_snapshots_asked_for_are_shown(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    house.back_up(tree)
    tagged = house.back_up(tree, tags=("red",))
    with mounted(house, "--tag", "red") as m:
        assert os.listdir(m.folder / "ids") == [tagged.snapshot_id[:8]]


def test_new_snapshots_appear_and_forgotten_ones_go(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    first = house.back_up(tree)
    with mounted(house) as m:
        assert (m.latest / "file").read_text() == "1"
        write(tree, {"file": "2!", "new": noise(3 * MIB)})
        second = house.back_up(tree)
        m.wait(lambda: second.snapshot_id[:8] in os.listdir(m.folder / "ids"))
        assert (m.latest / "file").read_text() == "2!"
        assert (m.latest / "new").read_bytes() == noise(3 * MIB)
        house.repo.storage.delete(f"snapshots/{first.snapshot_id}")
        m.wait(lambda: os.listdir(m.folder / "ids") == [second.snapshot_id[:8]])


def test_nothing_can_be_changed(house: House) -> None:
    house.back_up(write(house.folder / "tree", {"file": "1"}))
    with mounted(house) as m:
        for act in (
            lambda: (m.latest / "file").write_text("x"),
            lambda: (m.latest / "new").write_text("x"),
            lambda: (m.latest / "file").unlink(),
            lambda: (m.folder / "new").mkdir(),
            lambda: os.chmod(m.latest / "file", 0o777),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                act()


def test_the_file_system_says_it_is_full_and_how_large(house: House) -> None:
    house.back_up(write(house.folder / "tree", {"file": noise(2 * MIB)}))
    with mounted(house) as m:
        found = os.statvfs(m.folder)
        assert found.f_blocks * found.f_frsize >= 2 * MIB
        assert (found.f_bfree, found.f_bavail, found.f_namemax) == (0, 0, 255)
        assert found.f_flag & os.ST_RDONLY and found.f_flag & os.ST_NOSUID and found.f_flag & os.ST_NODEV


def test_a_sparse_file_is_copied_with_its_holes(house: House) -> None:
    (house.folder / "tree").mkdir()
    sparse(house.folder / "tree" / "disk", 64 * MIB, [(20 * MIB, noise(MIB)), (63 * MIB, noise(1000))])
    house.back_up(house.folder / "tree")
    with mounted(house) as m:
        assert (m.latest / "disk").stat().st_blocks * 512 < 2 * MIB
        subprocess.run(["cp", m.latest / "disk", house.folder / "copy"], check=True)
    assert (house.folder / "copy").stat().st_blocks * 512 < 2 * MIB
    assert (house.folder / "copy").read_bytes() == (house.folder / "tree" / "disk").read_bytes()


def test_any_part_of_a_large_file_can_be_read(fine: House) -> None:
    content = noise(20 * MIB)
    fine.back_up(write(fine.folder / "tree", {"large": content}))
    dice = random.Random(1)
    with mounted(fine) as m, (m.latest / "large").open("rb", buffering=0) as f:
        for _ in range(200):
            offset, size = dice.randrange(len(content) + 10), dice.randrange(1, 100_000)
            assert os.pread(f.fileno(), size, offset) == content[offset : offset + size]
        f.seek(0)
        assert f.readall() == content


# -- damage ------------------------------------------------------------------------------------------------------------


def test_damage_gives_eio_where_it_is_and_nowhere_else(house: House) -> None:
    files: dict[str, str | bytes] = {f"file {i}": noise(3 * MIB, i) for i in range(4)}
    house.back_up(write(house.folder / "tree", files))
    spoil(house)
    with mounted(house) as m:
        bad = []
        for name, content in files.items():
            try:
                assert (m.latest / name).read_bytes() == content
            except OSError as e:
                assert e.strerror == "Input/output error"
                bad.append(name)
        assert len(bad) in (1, 2)  # the damaged block may hold the end of one and the beginning of another
        lines = [line for line in m.said.splitlines() if "fails its verification" in line]
        assert [line.split(": ")[1].rpartition("/")[2] for line in lines] == bad
        with (m.latest / bad[0]).open("rb") as f:  # and of the file itself only the damaged chunk is lost
            good = sum(_readable(f.fileno(), offset) for offset in range(0, 3 * MIB, 4096))
        assert MIB // 4096 < good < 3 * MIB // 4096


def _readable(fd: int, offset: int) -> bool:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        return len(os.pread(fd, 4096, offset)) == 4096
    except OSError:
        return False


def test_a_damaged_page_hides_its_snapshot_and_no_other(house: House) -> None:
    tree = write(house.folder / "tree", {"file": noise(MIB)})
    first = house.back_up(tree)
    pages = house.path_of(min(house.packs(), key=lambda name: house.packs()[name]))
    second = house.back_up(write(house.folder / "other", {"other": "fine"}))
    pages.chmod(0o600)
    pages.write_bytes(bytes(pages.stat().st_size))
    with mounted(house) as m:
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(m.folder / "ids" / first.snapshot_id[:8])
        assert (m.folder / "ids" / second.snapshot_id[:8] / "other").read_text() == "fine"
        assert f"holdfast: ids/{first.snapshot_id[:8]}: " in m.said


def test_a_lost_pack_leaves_the_rest_readable(house: House) -> None:
    tree = write(house.folder / "tree", {"old": noise(2 * MIB, "old")})
    house.back_up(tree)
    lost = max(house.packs(), key=lambda name: house.packs()[name])
    house.back_up(write(tree, {"new": noise(2 * MIB, "new")}))
    house.path_of(lost).unlink()
    with mounted(house) as m:
        assert sorted(os.listdir(m.latest)) == ["new", "old"]
        assert (m.latest / "new").read_bytes() == noise(2 * MIB, "new")
        with pytest.raises(OSError, match="Input/output error"):
            (m.latest / "old").read_bytes()


# -- beginning and ending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(house: House, number: signal.Signals) -> None:
    house.back_up(write(house.folder / "tree", {"file": "1"}))
    with mounted(house) as m:
        assert [info.name for info in house.repo.storage.list("locks")] != []
        fd = os.open(m.latest / "file", os.O_RDONLY)  # somebody still uses it
        m.process.send_signal(number)
        assert m.process.wait(WAIT_S) == 0
        with suppress(OSError):
            os.close(fd)
        assert not os.path.ismount(m.folder)
        assert [info.name for info in house.repo.storage.list("locks")] == []


def test_what_is_missing_is_said_in_one_sentence(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    need_module("mfusepy")
    with pytest.raises(UsageError, match="does not exist"):
        mount.check_folder(str(house.folder / "nowhere"))
    (house.folder / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        mount.check_folder(str(house.folder / "file"))
    monkeypatch.setattr(mount, "FUSE_DEVICE", str(house.folder / "no device"))
    with pytest.raises(HoldfastError, match="is not there"):
        mount.load_fuse()
    monkeypatch.setitem(__import__("sys").modules, "mfusepy", None)
    with pytest.raises(HoldfastError, match="the Python package mfusepy") as caught:
        mount.load_fuse()
    assert "holdfast[mount]" in caught.value.hint


def test_a_mount_whose_process_was_killed_is_recognised(house: House) -> None:
    house.back_up(write(house.folder / "tree", {"file": "1"}))
    with mounted(house) as m:
        m.process.kill()
        m.process.wait()
        with pytest.raises(UsageError, match="cannot be mounted on") as caught:
            mount.check_folder(str(m.folder))
        assert "fusermount3 -u" in caught.value.hint
        subprocess.run(["fusermount3", "-u", m.folder], check=True)


# -- the parts ---------------------------------------------------------------------------------------------------------


class Shelfful:
    """Chunks by number, in memory; ``asked`` lists what was read."""

    def __init__(self, lengths: list[int]) -> None:
        self.contents = {
            i.to_bytes(ID_SIZE, "big").replace(b"\0", b"\1", 1): noise(n, i) for i, n in enumerate(lengths)
        }
        self.asked: list[bytes] = []
        self.lost: set[bytes] = set()

    @property
    def ids(self) -> list[bytes]:
        return list(self.contents)

    def read(self, chunk_id: bytes, /) -> bytes:
        self.length(chunk_id)
        self.asked.append(chunk_id)
        return self.contents[chunk_id]

    def length(self, chunk_id: bytes, /) -> int:
        if chunk_id in self.lost:
            raise Damaged("The chunk is in no pack.")
        return len(self.contents[chunk_id])


def a_file(items: list[bytes], size: int) -> Entry:
    return Entry(b"file", "f", 0o644, 0, 0, 0, 0, 1, size, b"".join(items))


def test_a_read_touches_only_the_chunks_it_needs() -> None:
    chunks = Shelfful([1000] * 500)
    file = RandomFile(chunks, a_file(chunks.ids, 500_000))
    assert chunks.asked == []
    assert file.read(123_400, 700) == b"".join(chunks.contents.values())[123_400:124_100]
    assert chunks.asked == chunks.ids[123:125]


def test_reads_anywhere_are_slices_of_the_content() -> None:
    chunks = Shelfful([100, 1, 4096, 7])
    ids = chunks.ids
    items = [hole(50), ids[0], hole(3), ids[1], ids[2], ids[3], hole(1000)]
    content = b"".join(bytes(int.from_bytes(i[-8:], "big")) if i not in ids else chunks.contents[i] for i in items)
    entry = a_file(items, len(content))
    file = RandomFile(chunks, entry)
    for offset in range(0, len(content) + 5, 13):
        for size in (0, 1, 60, 200, 10_000):
            assert file.read(offset, size) == content[offset : offset + size]
    assert data_bytes(entry, chunks) == len(content) - 1053
    assert (file.seek_data(0), file.seek_hole(50), file.seek_data(150), file.seek_hole(153)) == (50, 150, 153, 4257)
    assert (file.seek_hole(10), file.seek_data(4400), RandomFile(chunks, a_file([], 0)).read(0, 10)) == (10, None, b"")


def test_lost_chunks_cost_only_the_stretch_between_them() -> None:
    chunks = Shelfful([10] * 10)
    content = b"".join(chunks.contents.values())
    chunks.lost = {chunks.ids[4], chunks.ids[6]}
    file = RandomFile(chunks, a_file(chunks.ids, 100))
    assert file.read(0, 40) == content[:40]
    assert file.read(70, 100) == content[70:]
    for offset in (39, 40, 55, 69):
        with pytest.raises(Damaged):
            file.read(offset, 2)


def test_a_size_that_contradicts_the_content_is_refused() -> None:
    chunks = Shelfful([10] * 3)
    for size in (29, 31):
        with pytest.raises(Damaged, match="contradicts"):
            RandomFile(chunks, a_file(chunks.ids, size))
    chunks.lost = {chunks.ids[1]}
    with pytest.raises(Damaged, match="contradicts"):
        RandomFile(chunks, a_file(chunks.ids, 15))


def test_many_threads_that_want_one_chunk_read_it_once() -> None:
    chunks = Shelfful([1000] * 4)
    slow = threading.Event()
    read = chunks.read
    chunks.read = lambda chunk_id: (slow.wait(0.05), read(chunk_id))[1]  # type: ignore[method-assign]
    cached = CachedChunks(chunks)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cached.read, chunks.ids[:1] * 8))
    assert found == [chunks.contents[chunks.ids[0]]] * 8
    assert chunks.asked == chunks.ids[:1]


def test_what_is_kept_stays_within_its_weight() -> None:
    kept: Bounded[int] = Bounded(100)
    for i in range(50):
        kept.put(bytes([i]), i, 30)
        kept.put(bytes([i]), i, 30)
    assert [i for i in range(50) if kept.get(bytes([i])) is not None] == [47, 48, 49]


def view_of(house: House, root: bytes, read: Callable[[bytes], bytes], totals: Totals | None = None) -> View:
    source = Source(house.repo, house.repo.reader(), time.monotonic)
    source.read = read  # type: ignore[method-assign]
    [stored] = [s for s in house.repo.snapshots() if s.snapshot.root == root]
    stored.snapshot.totals = totals or stored.snapshot.totals
    return View(stored.id, stored.snapshot, Shared(source, CachedChunks(source)))


def test_looking_into_a_folder_reads_only_its_pages(house: House) -> None:
    files: dict[str, str | bytes] = {f"folder {i:02}/file {j:03}": "x" for i in range(30) for j in range(300)}
    root = house.back_up(write(house.folder / "tree", files)).snapshot.root
    reader, asked = house.repo.reader(), list[bytes]()

    def read(page: bytes) -> bytes:
        asked.append(page)
        return reader.read(page)

    view = view_of(house, root, read)
    assert [e.name for e in view.entries(b"folder 17")] == [b"file %03d" % j for j in range(300)]
    few = len(asked)
    assert few <= 8
    for j in range(300):  # what was listed is known
        assert view.find(b"folder 17/file %03d" % j) is not None
    assert view.find(b"folder 17/nothing") is None
    assert len(asked) == few


def test_hard_links_of_a_snapshot_too_large_to_count_are_two(house: House) -> None:
    tree = write(house.folder / "tree", {"a": "x"})
    for name in ("b", "c"):
        os.link(tree / "a", tree / name)
    root = house.back_up(tree).snapshot.root
    read = house.repo.reader().read
    for totals, links in ((None, 3), (Totals(files=COUNTED_LINKS + 1), 2)):
        view = view_of(house, root, read, totals)
        entry = view.find(b"a")
        assert entry is not None and view.links(entry) == links


def test_names_that_could_mean_something_else_are_not_shown(house: House) -> None:
    odd = [Entry(name, "f", 0o644, 0, 0, 0, 0, 1) for name in (b"..", b"a/b", b"good", b"x\0y")]
    root = house.store_pages((b"", [Entry(b"", "d", 0o755, 0, 0, 0, 0, 1), *odd]))
    view = view_of(house, root, house.repo.reader().read)
    assert [e.name for e in view.entries(b"")] == [b"good"]


def test_a_write_only_key_mounts_nothing(house: House) -> None:
    house.back_up(write(house.folder / "tree", {"file": "1"}))
    repo = house.write_only().repo
    with pytest.raises(KeyCannotRead):
        Library(repo, repo.reader(), Filter(), str, print)


def test_a_damaged_snapshot_is_named_and_the_others_are_shown(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    bad, good = house.back_up(tree).snapshot_id, house.back_up(tree).snapshot_id
    path = Path(house.repo.storage.place, "snapshots", bad)
    path.chmod(0o600)
    path.write_bytes(b"spoiled")
    said: list[str] = []
    library = Library(house.repo, house.repo.reader(), Filter(), str, said.append)
    ids, _ = library.resolve(b"/ids")
    assert list(getattr(ids, "items", {})) == [good[:8].encode()]
    assert len(said) == 1 and bad in said[0]


def test_two_snapshots_of_one_second_have_two_names(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    first, second = house.back_up(tree), house.back_up(tree)
    library = Library(house.repo, house.repo.reader(), Filter(), lambda time_ns: "then", print)
    shelf, _ = library.resolve(b"/snapshots")
    assert list(getattr(shelf, "items", {})) == [b"then", b"latest", b"then-" + second.snapshot_id[:8].encode()]
    view, inner = library.resolve(b"/snapshots/then/some/path")
    assert isinstance(view, View) and (view.id, inner) == (first.snapshot_id, b"some/path")


def test_the_index_is_read_again_for_what_is_newer_than_it(house: House) -> None:
    tree = write(house.folder / "tree", {"file": "1"})
    house.back_up(tree)
    times = iter(range(0, 100_000, 10))
    library = Library(house.repo, house.repo.reader(), Filter(), str, print, clock=lambda: float(next(times)))
    shutil.rmtree(tree)
    second = house.back_up(write(house.folder / "tree", {"other": noise(MIB)}))
    view, inner = library.resolve(b"/ids/" + second.snapshot_id[:8].encode() + b"/other")
    assert isinstance(view, View)
    entry = view.find(inner)
    assert entry is not None and RandomFile(library.chunks, entry).read(0, 2 * MIB) == noise(MIB)
