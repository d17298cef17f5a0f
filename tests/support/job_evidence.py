"""Evidence about jobs, drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from kernel_pytorch.jobs.recovery.evidence import Beat, Evidence, RankError

RANKS = st.integers(0, 4000)
TEXT = st.text(max_size=20)
STEP = st.none() | st.integers(0, 10**9)
SECONDS = st.floats(0, 1e6)
BEATS = st.builds(
    Beat,
    phase=st.sampled_from(["starting", "training", "evaluating", "saving", "left"]),
    step=STEP,
    since_s=SECONDS,
    median_step_s=st.none() | SECONDS,
    process_state=st.none() | st.sampled_from("RSDTZ"),
    where=st.none() | TEXT,
)
ERRORS = st.builds(RankError, text=TEXT, type=st.none() | TEXT, traceback=st.none() | TEXT, step=STEP)
EVIDENCE = st.builds(
    Evidence,
    exit_codes=st.dictionaries(RANKS, st.integers(-64, 255), max_size=4),
    agent_exit_code=st.none() | st.integers(-15, 255),
    errors=st.dictionaries(RANKS, ERRORS, max_size=3),
    log_lines=st.dictionaries(RANKS, st.lists(TEXT, max_size=3).map(tuple), max_size=3),
    node_lines=st.lists(TEXT, max_size=3).map(tuple),
    beats=st.dictionaries(RANKS, BEATS, max_size=4),
    left=st.dictionaries(RANKS, STEP, max_size=4),
    stop_requested=st.none() | TEXT,
    cancelled=st.booleans(),
    nodes_lost=st.lists(st.sampled_from(["n1", "n2", "n3"]), max_size=2).map(tuple),
    first_node=st.none() | st.just("n1"),
    node_of=st.dictionaries(RANKS, TEXT, max_size=3),
    slurm_state=st.none() | st.sampled_from(["RUNNING", "FAILED", "NODE_FAIL", "CANCELLED by 1000"]),
    slurm_reason=st.none() | st.sampled_from(["None", "BadConstraints", "Priority"]),
    oom_kills=st.dictionaries(TEXT, st.integers(0, 9), max_size=2),
    disk_free=st.dictionaries(TEXT, st.integers(0, 10**15), max_size=2),
)
