"""Frees the space that no snapshot needs, while backups go on: first condemn, later sweep.

Condemning (this run): what snapshots need is marked; packs with nothing of it are condemned, packs with little of it
have it copied into new packs first. A *condemned list* is put, and from then on writers treat those packs as absent.
Sweeping (a later run, or this one with ``now``): a list is ripe when its deadline is past and every lease that is not
over knows it. Then snapshots are read again; packs that one of them needs after all are pardoned, the rest deleted:
out of the index first, then the packs, the list last. A prune killed anywhere leaves a repository that is whole, and
a later one goes on.

Order that everything rests on: leases are read before snapshots. A writer that does not know a list is seen by its
lease, or has ended, and then its snapshot is seen. A writer whose lease is taken for over looks, after its snapshot,
for condemned lists and then for missing packs; lists are deleted after their packs, so one of the two tells it. A prune
that was asleep for so long that its own lease may be taken for over deletes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.errors import Busy, Damaged, ObjectMissing
from holdfast.repository.format import ID_SIZE, KIND_TREE, PACK_TARGET, PackRecord
from holdfast.repository.index import Index, Loaded, chunks_of, load_index, put_index_object
from holdfast.repository.leases import EXCLUSIVE, Hold, clear_ended, describe
from holdfast.repository.marking import Marks
from holdfast.repository.packs import BlockReader
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository
from holdfast.repository.writer import SMALL, TREE, ChunkWriter

DEADLINE_S = 24 * 3600
SMALL_PACK = PACK_TARGET // 8
MOST_SMALL_PACKS = 32
MOST_INDEX_OBJECTS = 16
INDEX_CHUNKS = 200_000  # of one index object when they are written anew
_HOUR_NS = 3600 * 1_000_000_000


@dataclass(frozen=True)
class Request:
    """``now``: sweep at once, Busy when somebody else is at work. ``max_unused``: the part of all bytes that may stay
    dead in packs that also hold live ones. ``deadline_s``: how long a condemned list waits.
    """

    now: bool = False
    max_unused: float = 0.05
    deadline_s: int = DEADLINE_S
    dry_run: bool = False


@dataclass
class Report:
    """What was done, or in a dry run would be. Bytes are stored bytes of packs."""

    packs: int = 0
    bytes: int = 0
    live_chunks: int = 0
    dead_chunks: int = 0
    condemned_packs: int = 0
    condemned_bytes: int = 0
    rewritten_packs: int = 0
    copied_bytes: int = 0
    deleted_packs: int = 0
    deleted_bytes: int = 0
    pardoned_packs: int = 0
    waiting_packs: int = 0
    index_objects: int = 0


@dataclass
class _Use:
    """How much of a pack's raw bytes is needed, and in all."""

    live: int = 0
    total: int = 0


@dataclass
class _State:
    """What one run knows. ``packs``: how many of the index's packs there were when leases were read last."""

    hold: Hold
    loaded: Loaded
    condemned: set[bytes]
    packs: int
    reader: ChunkReader
    marks: Marks
    seen: set[str] = field(default_factory=set)  # snapshots marked so far


def prune(repo: Repository, request: Request, tick: Callable[[str], None] = lambda text: None) -> Report:
    """Condemn and sweep. Needs a full key. Only one prune runs at a time (Busy); backups are never stopped."""
    report = Report()
    with repo.leases.hold_alone(EXCLUSIVE) as hold:
        if request.now:
            _refuse_company(repo, hold)
        tick("reading the index")
        condemned = repo.leases.survey().condemned_packs()
        loaded = load_index(repo.storage, repo.secrets, condemned=condemned, with_condemned=True, contents=True)
        oldest = _oldest_lease(repo, hold)
        reader = ChunkReader(repo.storage, repo.secrets, loaded.index)
        marks = Marks(loaded.index, reader)
        state = _State(hold, loaded, condemned, len(loaded.index.packs), reader, marks)
        tick("reading snapshots")
        _mark_new(repo, state)
        doomed = _condemn(repo, request, state, oldest, report, tick)
        if request.dry_run:
            report.waiting_packs = len(condemned)
            return report
        if doomed:
            hold.need()
            repo.leases.condemn(sorted(doomed), 0 if request.now else request.deadline_s)
        tick("sweeping")
        _sweep(repo, request, state, report)
        clear_ended(repo.storage, repo.leases.survey())
    return report


def _oldest_lease(repo: Repository, hold: Hold) -> int | None:
    """When the first of the others at work began, by the storage's clock. Who stored a pack that is in the index by now
    is seen here, or has ended, and then its snapshot will be seen.
    """
    locks = repo.leases.survey()
    others = [min(x.started_ns, locks.stored_ns[n]) for n, x in locks.live.items() if n != hold.name]
    return min(others, default=None)


def _refuse_company(repo: Repository, hold: Hold) -> None:
    for name, lease in repo.leases.survey().live.items():
        if name != hold.name:
            raise Busy(
                f"Somebody else is at work: {describe(lease)}.",
                "Run prune without --now: it does not disturb others, and a later run frees the space. A damaged lock,"
                " which nobody can end, goes with `holdfast repair index`.",
            )


def is_alone(repo: Repository) -> bool:
    """Whether nobody else holds a lease just now."""
    return not repo.leases.survey().live


def _mark_new(repo: Repository, state: _State) -> None:
    """Mark what snapshots need that were not marked yet."""
    new = [s for s in repo.snapshots() if s.id not in state.seen]
    try:
        state.marks.mark_trees(s.snapshot.root for s in new)
    except Damaged:
        if not _take_in_new_packs(repo, state):
            raise
        state.marks.mark_trees(s.snapshot.root for s in new)
    state.seen.update(s.id for s in new)


def _take_in_new_packs(repo: Repository, state: _State) -> bool:
    """Add what others stored since the index was read; whether there was anything."""
    index, before = state.loaded.index, len(state.loaded.index.packs)
    loaded = load_index(repo.storage, repo.secrets, contents=True)
    weak = state.condemned | {r.name for r in loaded.adopted}
    for name, record in loaded.records.items():
        index.add_pack(record, weak=name in weak)
    return len(index.packs) > before


# -- condemning --------------------------------------------------------------------------------------------------------


def _condemn(
    repo: Repository,
    request: Request,
    state: _State,
    oldest_lease_ns: int | None,
    report: Report,
    tick: Callable[[str], None],
) -> set[bytes]:
    """Choose the packs to condemn and copy what is live in them; their names."""
    index = state.loaded.index
    uses = {p.name: _use(index, n, state.marks, report) for n, p in enumerate(index.packs)}
    records = {p.name: p for p in index.packs[: state.packs] if p.name not in state.condemned}
    report.packs, report.bytes = len(records), sum(r.size for r in records.values())
    if oldest_lease_ns is not None:  # what a running backup has just stored looks dead and is not
        young = oldest_lease_ns - _HOUR_NS
        records = {n: r for n, r in records.items() if 0 < state.loaded.stored_ns.get(n, 0) < young}  # 0: not known
    dead = {n for n in records if not uses[n].live}
    partly = choose_partly({n: (uses[n].live, uses[n].total) for n in records if n not in dead}, request.max_unused)
    partly |= choose_small({n: r.size for n, r in records.items() if n not in dead and n not in partly})
    doomed = dead | partly
    report.condemned_packs, report.rewritten_packs = len(doomed), len(partly)
    report.condemned_bytes = sum(records[n].size for n in doomed)
    if partly and not request.dry_run:
        tick("copying what is still needed")
        before = len(index.packs)
        _copy_live(repo, state, [records[n] for n in sorted(partly)])
        report.copied_bytes = sum(r.size for r in index.packs[before:])
    return doomed


def _use(index: Index, number: int, marks: Marks, report: Report) -> _Use:
    use = _Use()
    for chunk_id, where in chunks_of(index.packs[number]):
        use.total += where.length
        if index.pack_of(chunk_id) == number and chunk_id in marks:
            use.live += where.length
            report.live_chunks += 1
        else:
            report.dead_chunks += 1
    return use


def choose_partly(uses: dict[bytes, tuple[int, int]], max_unused: float) -> set[bytes]:
    """Which packs to rewrite, the emptiest first, until at most that part of all raw bytes is dead.

    ``uses``: pack -> (live bytes, all bytes), both raw.
    """
    total = sum(t for _, t in uses.values())
    unused = sum(t - live for live, t in uses.values())
    chosen = set()
    for name, (live, size) in sorted(uses.items(), key=lambda item: (item[1][0] / max(1, item[1][1]), item[0])):
        if unused <= total * max_unused or live == size:
            break
        chosen.add(name)
        unused -= size - live
    return chosen


def choose_small(sizes: dict[bytes, int]) -> set[bytes]:
    """Many small packs, as frequent backups leave them, are merged; a few are left alone."""
    small = {n for n, size in sizes.items() if size < SMALL_PACK}
    return small if len(small) > MOST_SMALL_PACKS else set()


def _copy_live(repo: Repository, state: _State, records: list[PackRecord]) -> None:
    """Copy live chunks into new packs, durable and indexed when this returns. A block that is live as a whole is taken
    as it is; of others the live chunks are packed anew.
    """
    index, marks = state.loaded.index, state.marks
    writer = ChunkWriter(repo.storage, repo.secrets, index)
    try:
        for record in records:
            number = index.number_of(record.name)
            blocks: dict[int, list[tuple[bytes, int, int, bool]]] = {}
            for chunk_id, where in chunks_of(record):
                live = chunk_id in marks and index.pack_of(chunk_id) == number
                blocks.setdefault(where.block, []).append((chunk_id, where.offset, where.length, live))
            pack = state.reader.pack(number) if number is not None else None
            for block, chunks in sorted(blocks.items()):
                if pack is not None and any(live for *_, live in chunks):
                    _copy_block(repo, writer, pack, record.kind, block, chunks)
        writer.flush()
    finally:
        writer.close()


def _copy_block(
    repo: Repository,
    writer: ChunkWriter,
    pack: BlockReader,
    kind: int,
    block: int,
    chunks: list[tuple[bytes, int, int, bool]],
) -> None:
    codec, payload, raw = pack.read_payload(repo.storage, block)
    hasher = writer.chunk_id
    if any(hasher(memoryview(raw)[o : o + n]) != i for i, o, n, live in chunks if live):
        raise pack.damaged(block)
    lengths = [n for _, _, n, _ in chunks]
    if all(live for *_, live in chunks):
        writer.add_block(kind, codec, payload, len(raw), [c[0] for c in chunks], lengths)
        return
    stream = TREE if kind == KIND_TREE else SMALL
    for chunk_id, offset, length, live in chunks:
        if live:
            writer.space(stream, length)[:length] = raw[offset : offset + length]
            writer.keep(stream, chunk_id, length)


# -- sweeping ----------------------------------------------------------------------------------------------------------


def _sweep(repo: Repository, request: Request, state: _State, report: Report) -> None:
    """Delete the packs of every ripe list, and compact the index."""
    locks = repo.leases.survey()
    others = [x for n, x in locks.live.items() if n != state.hold.name]
    newest = max(locks.stored_ns.values(), default=0)
    ripe = []
    for name, listed in locks.condemned.items():
        known = all(bytes.fromhex(name[6:]) in lease.knows for lease in others)
        past = newest - locks.stored_ns[name] >= listed.deadline_s * 1_000_000_000
        if known and (past or (request.now and not others)):
            ripe.append(name)
        else:
            report.waiting_packs += len(listed.packs)
    _mark_new(repo, state)
    state.hold.need()
    doomed: set[bytes] = set()
    for name in ripe:
        for pack in locks.condemned[name].packs:
            if _is_needed(state, pack):
                report.pardoned_packs += 1
            else:
                doomed.add(pack)
    report.index_objects = _rewrite_index(repo, state, doomed)
    for pack in sorted(doomed):
        state.hold.need()
        report.deleted_bytes += _delete_pack(repo, pack)
    report.deleted_packs = len(doomed)
    for name in ripe:
        repo.storage.delete(name)


def _is_needed(state: _State, pack: bytes) -> bool:
    """Whether a snapshot needs a chunk that is to be found in this pack and nowhere better."""
    index = state.loaded.index
    number = index.number_of(pack)
    if number is None:
        return False
    return any(index.pack_of(i) == number and i in state.marks for i, _ in chunks_of(index.packs[number]))


def _delete_pack(repo: Repository, pack: bytes) -> int:
    name = f"data/{pack.hex()}"
    try:
        size = repo.storage.stat(name).size
    except ObjectMissing:
        return 0
    repo.storage.delete(name)
    return size


def _rewrite_index(repo: Repository, state: _State, doomed: set[bytes]) -> int:
    """Write anew the index objects that name doomed packs, and all of them when they are many; how many there are then.

    The new objects name those they stand for, so that being killed between the two steps does no harm.
    """
    stored = load_index(repo.storage, repo.secrets, contents=True)
    stale = {n for n, packs in stored.packs.items() if doomed.intersection(packs)} | (
        stored.objects.keys() - stored.packs.keys()
    )
    if len(stored.packs) > MOST_INDEX_OBJECTS or stored.absent or stored.adopted:
        stale = set(stored.objects)
    if not stale:
        return len(stored.objects)
    keep = [r for n in sorted(stale) for p in stored.packs.get(n, []) if (r := stored.records.get(p)) is not None]
    if stale == set(stored.objects):
        keep = list(stored.records.values())
    written = put_index(repo, [r for r in keep if r.name not in doomed], stale)
    for name in sorted(stale):
        repo.storage.delete(name)
    return len(stored.objects) - len(stale) + written


def put_index(repo: Repository, records: list[PackRecord], supersedes: set[str]) -> int:
    """Store records as index objects of at most INDEX_CHUNKS chunks; the last one stands for the superseded. How
    many.
    """
    groups: list[list[PackRecord]] = [[]]
    count = 0
    for record in {r.name: r for r in records}.values():
        if count >= INDEX_CHUNKS:
            groups.append([])
            count = 0
        groups[-1].append(record)
        count += len(record.ids) // ID_SIZE
    for group in groups[:-1]:
        put_index_object(repo.storage, repo.secrets, group)
    put_index_object(repo.storage, repo.secrets, groups[-1], supersedes)
    return len(groups)
