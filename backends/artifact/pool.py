"""The compiled-in thread pool as LLVM IR text: part of the glue, in sections of its own.

A network's steps are one function, `steps(frame, part, parts)`. NAME_run is part 0; the workers run the same function
as parts 1, 2, ... and everybody meets between steps that depend on each other. Nothing is handed out while a run is
under way: part p of n is fixed, so results do not depend on timing.

Each part has a slot of its own in RAM, with a counter that it alone raises. To meet, a part raises its counter and
waits until all others have reached it: one cache line goes each way. Who waits spins first and then sleeps on the
counter (futex). Raising and looking for sleepers, and announcing oneself as a sleeper and looking at the counter, are
both sequentially consistent, so no wake-up is lost. A part that had to sleep spins less for
the rest of the run, until spinning pays again: with more threads than processors, waiting gives the processor away. It
spins no less than about as long as waking up takes: parts that only wake each other would go on doing so.

RAM (`ram_bytes`): one line of facts, one for the lock, then the slots. Nothing else is written, and nothing is
allocated but by pthread_create. A second caller of the same context finds the lock taken and runs alone; so does a
child process after fork, which has no workers.
"""

from __future__ import annotations

from irc.errors import OptionError
from irc.targets.target import Target

LINE = 128  # two cache lines of 64 bytes, which processors fetch in pairs
MOST_THREADS = 1024

FUNCTIONS = frozenset({"pthread_create", "pthread_join", "pthread_sigmask", "sched_getaffinity", "syscall", "getpid"})
"""What the pool needs of the C library."""

# Frame: what `steps` gets. Words of NAME_run's stack.
FRAME_WEIGHTS, FRAME_WORKSPACE, FRAME_INPUTS, FRAME_OUTPUTS, FRAME_CTX, FRAME_POOL, FRAME_COUNT = range(7)
FRAME_WORDS = 7

# Facts, by offset.
_PARTS, _PID, RUN, STOP = 0, 4, 8, 16
_LOCK = LINE
_SLOTS = 2 * LINE
# A slot, by offset. The counter is the first word; patience is its own business and lies on another line.
_SLEEPERS, _THREAD, _JOB, _POOL, _PART, _PATIENCE = 4, 8, 16, 24, 32, 64

_SPINS = {"x86-64": 2500, "aarch64": 5000}  # of pause and isb: some tens of microseconds
_FEWEST_SHARE = 8  # of the spins: what is left to a part that had to sleep
_FUTEX = {"x86-64": 202, "aarch64": 98}  # number of the system call
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT, FUTEX_WAKE, private to the process
_PAUSE = {
    "x86-64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}
# Signals stay with the caller's threads, but for those that an instruction raises: ILL TRAP ABRT BUS FPE SEGV SYS.
_BLOCKED = ((1 << 64) - 1) & ~sum(1 << (n - 1) for n in (4, 5, 6, 7, 8, 11, 31))
_SIGSET_WORDS = 16
_CPU_WORDS = 128  # of 64 processors each
_SIG_SETMASK = 2


def ram_bytes(threads: int) -> int:
    """RAM of a pool of `threads` threads; 0 for one thread, which needs no pool."""
    return _SLOTS + LINE * threads if threads > 1 else 0


def has_pool(target: Target) -> bool:
    """Whether there is a pool for the target's system at all."""
    return "linux" in target.triple and target.arch in _FUTEX


def check_threads(threads: int, target: Target) -> None:
    """Raises OptionError unless a pool of this many threads can be compiled in; 1 needs none."""
    if not 1 <= threads <= MOST_THREADS:
        raise OptionError("--threads must be at least 1", expected=f"1 to {MOST_THREADS}", got=str(threads))
    if threads > 1 and not has_pool(target):
        raise OptionError(
            "there is no thread pool for this target",
            where=f"target {target.name}",
            expected="Linux on x86-64 or aarch64",
            hint="without --threads; NAME_set_parallel shares the work among threads of the program",
        )


def pool_ll(arch: str, meetings: int, ctx_pool: int) -> list[str]:
    """Functions of the pool. `meetings`: how often the parts meet in one run of @steps; `ctx_pool`: byte offset of the
    pool's address in the context.

    pool_start(ctx, ram, threads): 2 threads or more, RAM enough and aligned. Sets the context's pool, or null when
    there is one processor or no thread can be made.
    pool_run(pool, frame): 1 when the run was done, 0 when the caller has to do it alone.
    pool_meet(pool, part, parts, count): until all parts have said `count`.
    pool_stop(pool): ends and joins the workers.
    """
    declare_pause, pause = _PAUSE[arch]
    values = {
        "PAUSE_DECLARATION": declare_pause,
        "PAUSE": pause,
        "FUTEX": _FUTEX[arch],
        "WAIT": _WAIT,
        "WAKE": _WAKE,
        "SPINS": _SPINS[arch],
        "FEWEST": _SPINS[arch] // _FEWEST_SHARE,
        "SLOTS": _SLOTS,
        "LINE": LINE,
        "LOCK": _LOCK,
        "PARTS": _PARTS,
        "PID": _PID,
        "RUN": RUN,
        "STOP": STOP,
        "SLEEPERS": _SLEEPERS,
        "THREAD": _THREAD,
        "JOB": _JOB,
        "POOL": _POOL,
        "PART": _PART,
        "PATIENCE": _PATIENCE,
        "CTX_POOL": ctx_pool,
        "FRAME_POOL": 8 * FRAME_POOL,
        "FRAME_COUNT": 8 * FRAME_COUNT,
        "RUN_COUNT": meetings + 1,
        "SIGSET": _SIGSET_WORDS,
        "BLOCKED": _BLOCKED - (1 << 64),
        "SETMASK": _SIG_SETMASK,
        "CPU_WORDS": _CPU_WORDS,
        "CPU_BYTES": 8 * _CPU_WORDS,
    }
    text = _TEXT
    for key in sorted(values, key=len, reverse=True):
        text = text.replace(f"@@{key}@@", str(values[key]))
    return text.splitlines()


_TEXT = """\
declare i32 @pthread_create(ptr, ptr, ptr, ptr) #0
declare i32 @pthread_join(i64, ptr) #0
declare i32 @pthread_sigmask(i32, ptr, ptr) #0
declare i32 @sched_getaffinity(i32, i64, ptr) #0
declare i32 @getpid() #0
declare i64 @syscall(i64, ...) #0
declare i64 @llvm.ctpop.i64(i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
@@PAUSE_DECLARATION@@

; Until the counter at %slot has reached %count. %me: the waiting part's own slot.
define internal void @pool_wait(ptr %slot, i32 %count, ptr %me) #1 section ".text.pool" {
entry:
  %now = load atomic i32, ptr %slot acquire, align 4
  %ahead = sub i32 %now, %count
  %done = icmp sge i32 %ahead, 0
  br i1 %done, label %out, label %spin_start
spin_start:
  %patience = getelementptr inbounds i8, ptr %me, i64 @@PATIENCE@@
  %spins = load i32, ptr %patience
  br label %spin
spin:
  %left = phi i32 [ %spins, %spin_start ], [ %fewer, %again ]
  @@PAUSE@@
  %v = load atomic i32, ptr %slot acquire, align 4
  %d = sub i32 %v, %count
  %reached = icmp sge i32 %d, 0
  br i1 %reached, label %paid, label %again
again:
  %fewer = add i32 %left, -1
  %tired = icmp slt i32 %fewer, 1
  br i1 %tired, label %sleep, label %spin
paid:
  store i32 @@SPINS@@, ptr %patience
  br label %out
sleep:
  %quarter = lshr i32 %spins, 2
  %few = icmp ult i32 %quarter, @@FEWEST@@
  %less = select i1 %few, i32 @@FEWEST@@, i32 %quarter
  store i32 %less, ptr %patience
  %sleepers = getelementptr inbounds i8, ptr %slot, i64 @@SLEEPERS@@
  %o1 = atomicrmw add ptr %sleepers, i32 1 seq_cst, align 4
  br label %look
look:
  %seen = load atomic i32, ptr %slot seq_cst, align 4
  %e = sub i32 %seen, %count
  %up = icmp sge i32 %e, 0
  br i1 %up, label %awake, label %doze
doze:
  %wide = zext i32 %seen to i64
  %r1 = call i64 (i64, ...) @syscall(i64 @@FUTEX@@, ptr %slot, i64 @@WAIT@@, i64 %wide, ptr null)
  br label %look
awake:
  %o2 = atomicrmw sub ptr %sleepers, i32 1 seq_cst, align 4
  br label %out
out:
  ret void
}

; Raises the counter of %slot to %count and wakes who sleeps on it.
define internal void @pool_raise(ptr %slot, i32 %count) #1 section ".text.pool" {
  store atomic i32 %count, ptr %slot seq_cst, align 4
  %place = getelementptr inbounds i8, ptr %slot, i64 @@SLEEPERS@@
  %sleepers = load atomic i32, ptr %place seq_cst, align 4
  %none = icmp eq i32 %sleepers, 0
  br i1 %none, label %out, label %wake
wake:
  %r = call i64 (i64, ...) @syscall(i64 @@FUTEX@@, ptr %slot, i64 @@WAKE@@, i64 2147483647)
  br label %out
out:
  ret void
}

; Until the counters of all parts but %part have reached %count.
define internal void @pool_wait_others(ptr %pool, i32 %part, i32 %parts, i32 %count) #1 section ".text.pool" {
entry:
  %slots = getelementptr inbounds i8, ptr %pool, i64 @@SLOTS@@
  %wide = zext i32 %part to i64
  %skip = mul i64 %wide, @@LINE@@
  %me = getelementptr inbounds i8, ptr %slots, i64 %skip
  br label %loop
loop:
  %i = phi i32 [ 0, %entry ], [ %next, %step ]
  %own = icmp eq i32 %i, %part
  br i1 %own, label %step, label %other
other:
  %iw = zext i32 %i to i64
  %at = mul i64 %iw, @@LINE@@
  %slot = getelementptr inbounds i8, ptr %slots, i64 %at
  call void @pool_wait(ptr %slot, i32 %count, ptr %me)
  br label %step
step:
  %next = add i32 %i, 1
  %more = icmp slt i32 %next, %parts
  br i1 %more, label %loop, label %out
out:
  ret void
}

define internal void @pool_meet(ptr %pool, i32 %part, i32 %parts, i32 %count) #1 section ".text.pool" {
  %wide = zext i32 %part to i64
  %skip = mul i64 %wide, @@LINE@@
  %at = add i64 %skip, @@SLOTS@@
  %me = getelementptr inbounds i8, ptr %pool, i64 %at
  call void @pool_raise(ptr %me, i32 %count)
  call void @pool_wait_others(ptr %pool, i32 %part, i32 %parts, i32 %count)
  ret void
}

define internal ptr @pool_worker(ptr %me) #1 section ".text.pool" {
entry:
  %pp = getelementptr inbounds i8, ptr %me, i64 @@POOL@@
  %pool = load ptr, ptr %pp
  %np = getelementptr inbounds i8, ptr %me, i64 @@PART@@
  %part = load i32, ptr %np
  %first = getelementptr inbounds i8, ptr %pool, i64 @@SLOTS@@
  %jp = getelementptr inbounds i8, ptr %first, i64 @@JOB@@
  br label %idle
idle:
  %count = phi i32 [ 0, %entry ], [ %end, %work ]
  %start = add i32 %count, 1
  call void @pool_wait(ptr %first, i32 %start, ptr %me)
  %frame = load ptr, ptr %jp
  %stop = icmp eq ptr %frame, null
  br i1 %stop, label %out, label %work
work:
  %patience = getelementptr inbounds i8, ptr %me, i64 @@PATIENCE@@
  store i32 @@SPINS@@, ptr %patience
  %ps = getelementptr inbounds i8, ptr %pool, i64 @@PARTS@@
  %parts = load i32, ptr %ps
  call void @steps(ptr %frame, i32 %part, i32 %parts)
  %end = add i32 %start, @@RUN_COUNT@@
  call void @pool_raise(ptr %me, i32 %end)
  br label %idle
out:
  ret ptr null
}

define internal i32 @pool_run(ptr %pool, ptr %frame) #1 section ".text.pool" {
  %ip = getelementptr inbounds i8, ptr %pool, i64 @@PID@@
  %maker = load i32, ptr %ip
  %me = call i32 @getpid()
  %same = icmp eq i32 %maker, %me
  br i1 %same, label %parent, label %alone
parent:
  %lock = getelementptr inbounds i8, ptr %pool, i64 @@LOCK@@
  %pair = cmpxchg ptr %lock, i32 0, i32 1 acquire monotonic, align 4
  %mine = extractvalue { i32, i1 } %pair, 1
  br i1 %mine, label %go, label %alone
go:
  %first = getelementptr inbounds i8, ptr %pool, i64 @@SLOTS@@
  %count = load i32, ptr %first
  %start = add i32 %count, 1
  %patience = getelementptr inbounds i8, ptr %first, i64 @@PATIENCE@@
  store i32 @@SPINS@@, ptr %patience
  %fp = getelementptr inbounds i8, ptr %frame, i64 @@FRAME_POOL@@
  store ptr %pool, ptr %fp
  %fc = getelementptr inbounds i8, ptr %frame, i64 @@FRAME_COUNT@@
  store i32 %start, ptr %fc
  %jp = getelementptr inbounds i8, ptr %first, i64 @@JOB@@
  store ptr %frame, ptr %jp
  %ps = getelementptr inbounds i8, ptr %pool, i64 @@PARTS@@
  %parts = load i32, ptr %ps
  call void @pool_raise(ptr %first, i32 %start)
  call void @steps(ptr %frame, i32 0, i32 %parts)
  %end = add i32 %start, @@RUN_COUNT@@
  store atomic i32 %end, ptr %first release, align 4
  call void @pool_wait_others(ptr %pool, i32 0, i32 %parts, i32 %end)
  store atomic i32 0, ptr %lock release, align 4
  ret i32 1
alone:
  ret i32 0
}

define internal void @pool_stop(ptr %pool) #1 section ".text.pool" {
entry:
  %ip = getelementptr inbounds i8, ptr %pool, i64 @@PID@@
  %maker = load i32, ptr %ip
  %me = call i32 @getpid()
  %same = icmp eq i32 %maker, %me
  br i1 %same, label %parent, label %out
parent:
  %ps = getelementptr inbounds i8, ptr %pool, i64 @@PARTS@@
  %parts = load i32, ptr %ps
  call void @pool_end(ptr %pool, i32 %parts)
  br label %out
out:
  ret void
}

; Ends and joins the workers of parts 1 to %parts - 1.
define internal void @pool_end(ptr %pool, i32 %parts) #1 section ".text.pool" {
entry:
  %first = getelementptr inbounds i8, ptr %pool, i64 @@SLOTS@@
  %jp = getelementptr inbounds i8, ptr %first, i64 @@JOB@@
  store ptr null, ptr %jp
  %count = load i32, ptr %first
  %start = add i32 %count, 1
  call void @pool_raise(ptr %first, i32 %start)
  br label %loop
loop:
  %i = phi i32 [ 1, %entry ], [ %next, %join ]
  %more = icmp slt i32 %i, %parts
  br i1 %more, label %join, label %out
join:
  %wide = zext i32 %i to i64
  %skip = mul i64 %wide, @@LINE@@
  %slot = getelementptr inbounds i8, ptr %first, i64 %skip
  %tp = getelementptr inbounds i8, ptr %slot, i64 @@THREAD@@
  %thread = load i64, ptr %tp
  %r = call i32 @pthread_join(i64 %thread, ptr null)
  %next = add i32 %i, 1
  br label %loop
out:
  ret void
}

; How many processors this thread may run on; %most when nobody knows.
define internal i32 @pool_processors(i32 %most) #1 section ".text.pool" {
entry:
  %mask = alloca [@@CPU_WORDS@@ x i64], align 8
  call void @llvm.memset.p0.i64(ptr align 8 %mask, i8 0, i64 @@CPU_BYTES@@, i1 false)
  %r = call i32 @sched_getaffinity(i32 0, i64 @@CPU_BYTES@@, ptr %mask)
  %known = icmp eq i32 %r, 0
  br i1 %known, label %loop, label %unknown
unknown:
  ret i32 %most
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %sum = phi i64 [ 0, %entry ], [ %total, %loop ]
  %at = getelementptr inbounds i64, ptr %mask, i64 %i
  %word = load i64, ptr %at
  %bits = call i64 @llvm.ctpop.i64(i64 %word)
  %total = add i64 %sum, %bits
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, @@CPU_WORDS@@
  br i1 %more, label %loop, label %out
out:
  %n = trunc i64 %total to i32
  ret i32 %n
}

define internal void @pool_start(ptr %ctx, ptr %pool, i32 %threads) #1 section ".text.pool" {
entry:
  %set = alloca [@@SIGSET@@ x i64], align 8
  %old = alloca [@@SIGSET@@ x i64], align 8
  %cp = getelementptr inbounds i8, ptr %ctx, i64 @@CTX_POOL@@
  store ptr null, ptr %cp
  %processors = call i32 @pool_processors(i32 %threads)
  %enough = icmp sge i32 %processors, %threads
  %want = select i1 %enough, i32 %threads, i32 %processors
  %several = icmp sgt i32 %want, 1
  br i1 %several, label %prepare, label %alone
alone:
  ret void
prepare:
  %ww = zext i32 %want to i64
  %slot_bytes = mul i64 %ww, @@LINE@@
  %bytes = add i64 %slot_bytes, @@SLOTS@@
  call void @llvm.memset.p0.i64(ptr align 8 %pool, i8 0, i64 %bytes, i1 false)
  %ip = getelementptr inbounds i8, ptr %pool, i64 @@PID@@
  %pid = call i32 @getpid()
  store i32 %pid, ptr %ip
  %rp = getelementptr inbounds i8, ptr %pool, i64 @@RUN@@
  store ptr @pool_run, ptr %rp
  %sp = getelementptr inbounds i8, ptr %pool, i64 @@STOP@@
  store ptr @pool_stop, ptr %sp
  %first = getelementptr inbounds i8, ptr %pool, i64 @@SLOTS@@
  %fpat = getelementptr inbounds i8, ptr %first, i64 @@PATIENCE@@
  store i32 @@SPINS@@, ptr %fpat
  call void @llvm.memset.p0.i64(ptr align 8 %set, i8 -1, i64 128, i1 false)
  store i64 @@BLOCKED@@, ptr %set
  %m1 = call i32 @pthread_sigmask(i32 @@SETMASK@@, ptr %set, ptr %old)
  br label %loop
loop:
  %i = phi i32 [ 1, %prepare ], [ %next, %made ]
  %more = icmp slt i32 %i, %want
  br i1 %more, label %make, label %finish
make:
  %wide = zext i32 %i to i64
  %skip = mul i64 %wide, @@LINE@@
  %slot = getelementptr inbounds i8, ptr %first, i64 %skip
  %pp = getelementptr inbounds i8, ptr %slot, i64 @@POOL@@
  store ptr %pool, ptr %pp
  %np = getelementptr inbounds i8, ptr %slot, i64 @@PART@@
  store i32 %i, ptr %np
  %pat = getelementptr inbounds i8, ptr %slot, i64 @@PATIENCE@@
  store i32 @@SPINS@@, ptr %pat
  %tp = getelementptr inbounds i8, ptr %slot, i64 @@THREAD@@
  %failed = call i32 @pthread_create(ptr %tp, ptr null, ptr @pool_worker, ptr %slot)
  %good = icmp eq i32 %failed, 0
  br i1 %good, label %made, label %finish
made:
  %next = add i32 %i, 1
  br label %loop
finish:
  %parts = phi i32 [ %i, %loop ], [ %i, %make ]
  %m2 = call i32 @pthread_sigmask(i32 @@SETMASK@@, ptr %old, ptr null)
  %ps = getelementptr inbounds i8, ptr %pool, i64 @@PARTS@@
  store i32 %parts, ptr %ps
  %any = icmp sgt i32 %parts, 1
  br i1 %any, label %ready, label %alone
ready:
  store ptr %pool, ptr %cp
  ret void
}
"""
