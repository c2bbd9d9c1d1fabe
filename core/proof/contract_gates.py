"""The gates of the published contracts as a table: id, rule, how it is judged from a trace, a check or a comparison.

A gate that saw no data says NOT_MEASURED, never PASS. No gate decides a verdict: judge_pair.py and check.py do.
Source: aprender's contracts trace-ffn-sub-block-v1, trace-ffn-sub-block-gguf-v1 and apr-vs-gguf-forward-parity-v1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from core.model.stages import GRID_STAGES, SUB_FFN, place_text
from core.proof.verdict import Comparison, Verdict
from core.system.errors import FileError
from core.system.limits import JSON_DEPTH
from core.system.outcome import FAIL, NOT_MEASURED, PASS, SHOWN, Gate, Outcome
from core.trace.grid import layers, value
from core.trace.record import Trace

SLOTS = (*SUB_FFN, "ffn_out")
SPIKE_LAYER, AROUND = 3, range(5, 27)  # of the published 28-layer model
MODEL = "Qwen2.5-Coder-7B: qwen2, 28 layers, 3584 wide"  # what the contracts were measured on
N_LAYER, FAMILY, WIDTHS = 28, "qwen2", (3584, 256)         # 256: the demonstration, made to show what it shows
SPIKE, CALM = 3.0, 2.0       # SUB-FFN-001: one slot at least 3 x the median of layers 5 to 26, the others at most 2 x
NEAR, FAR = 0.1, 0.5 / 1.22  # FFN-GGUF-003 as published: within 10 % of 1.22 is H1, under 0.5 is H2
BAND = (0.5, 2.0)


Judge = Callable[[Trace, Comparison | None], tuple[Outcome, str]]


def judge_gates(trace: Trace, comparison: Comparison | None = None) -> list[Gate]:
    """Judge every gate of the table on a trace, or on a comparison (whose A the trace is)."""
    found = []
    for name, (rule, judge) in GATES.items():
        verdict, measured = judge(trace, comparison)
        found.append(Gate(name, rule, measured, verdict))
    return found


def gate_rows(gates: Sequence[Gate]) -> list[dict[str, str]]:
    """The gates as gates.json has them."""
    return [{"id": g.id, "rule": g.rule, "verdict": g.verdict, "measured": g.measured} for g in gates]


def _traced(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    for t in (trace, comparison.b) if comparison else (trace,):
        if t.origin.get("format") == "gguf" and t.facts.engine == "apr-tui":
            return _rows(t)
    return NOT_MEASURED, "no side is a GGUF file traced here"


def _witness(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    words = [t.observed_equals_unobserved for t in ((trace, comparison.b) if comparison else (trace,))]
    if None in words:
        return NOT_MEASURED, "the witness was left out"
    return (PASS, "logits have the same bits") if all(words) else (FAIL, "traced logits differ from untraced ones")


def _question(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    if comparison is None or comparison.verdict in (Verdict.NOT_COMPARABLE, Verdict.INCONCLUSIVE):
        return NOT_MEASURED, "no verdict on a pair"
    left = value(comparison.a.cells, (SPIKE_LAYER, "ffn_swigl"), "all", "std")
    right = value(comparison.b.cells, (SPIKE_LAYER, "ffn_swigl"), "last", "std")
    text = "the published rule had nothing to compare"
    if _other_model(comparison.a) or _other_model(comparison.b):
        text = f"the published rule had nothing to compare: it is of {MODEL}"
    elif left and right is not None:
        said = "H1" if abs(right / left - 1) <= NEAR else "H2" if right / left < FAR else "neither"
        text = (f"the published rule (B's last token {right:.4g} against A's all tokens {left:.4g}) would have said "
                f"{said}; it compares one token with all of them, so that one token's spike looks like a bug")
    return FAIL if comparison.verdict is Verdict.H2 else PASS, f"{comparison.verdict}; {text}"


def _named(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    if comparison is None or comparison.verdict is not Verdict.H2 or comparison.first is None:
        return NOT_MEASURED, "no bug to fix"
    return PASS, f"H2 at {place_text(comparison.first)}, side {comparison.side or 'not decided'}: a fix names this"


def _one_slot(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    other = _other_model(trace)
    if other:
        return NOT_MEASURED, f"this is {other}; the contract is of {MODEL}"
    cells, rows = trace.cells, set(layers(trace.cells))
    if not {SPIKE_LAYER, *AROUND} <= rows:
        return NOT_MEASURED, f"layers {SPIKE_LAYER} and {AROUND[0]} to {AROUND[-1]} are needed"
    times = {}
    for stage in SLOTS:
        around = [value(cells, (i, stage), "all", "std") for i in AROUND]
        here = value(cells, (SPIKE_LAYER, stage), "all", "std")
        known = [x for x in around if x is not None]
        if here is None or len(known) < len(around) or not median(known):
            return NOT_MEASURED, f"{stage} is absent or 0 at scope all"
        times[stage] = here / median(known)
    high = [s for s in SLOTS if times[s] >= SPIKE]
    calm = all(times[s] <= CALM for s in SLOTS if s not in high)
    measured = ", ".join(f"{s} {x:.2g} x" for s, x in times.items())
    return (PASS if len(high) == 1 and calm else FAIL), measured


def _other_model(trace: Trace) -> str | None:
    """What the trace is of, where it says that it is not the model of the contracts; None where it may be."""
    facts = trace.facts
    rows = (("architecture", facts.arch, (FAMILY,)), ("layers", facts.n_layer, (N_LAYER,)),
            ("width", facts.d_model, WIDTHS))
    unlike = [f"{name} {value}" for name, value, wanted in rows if value is not None and value not in wanted]
    return ", ".join(unlike) or None


def _rows(trace: Trace, comparison: Comparison | None = None) -> tuple[Outcome, str]:
    down = layers(trace.cells)
    have = sum((layer, stage) in trace.cells for layer in down for stage in GRID_STAGES)
    if not down:
        return NOT_MEASURED, "no layer was traced"
    want = len(down) * len(GRID_STAGES)
    return (PASS if have == want else FAIL), f"{have} of {want} cells ({len(down)} layers)"


def _counts(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    if comparison is None:
        return NOT_MEASURED, "one side only"
    pairs = {p: [value(t.cells, p, comparison.scope, "count") for t in (comparison.a, comparison.b)]
             for p in comparison.a.cells.keys() & comparison.b.cells.keys()}
    known = {p: c for p, c in pairs.items() if None not in c}
    if not known:
        return NOT_MEASURED, "no cell has a count on both sides"
    wrong = [p for p, (x, y) in known.items() if x != y]
    return (FAIL if wrong else PASS), f"{len(wrong)} of {len(known)} cells have other counts"


def _band(trace: Trace, comparison: Comparison | None) -> tuple[Outcome, str]:
    if comparison is None:
        return NOT_MEASURED, "one side only"
    ratios = []
    for layer in layers(comparison.a.cells):
        x, y = (value(t.cells, (layer, "ffn_swigl"), comparison.scope, "std") for t in (comparison.a, comparison.b))
        ratios += [x / y] if x is not None and y else []
    if not ratios:
        return NOT_MEASURED, "no ratio"
    inside = sum(BAND[0] <= r <= BAND[1] for r in ratios)
    return SHOWN, f"{inside} of {len(ratios)} layers inside, {min(ratios):.3g} to {max(ratios):.3g}"


GATES: Mapping[str, tuple[str, Judge]] = {
    "FFN-GGUF-001": ("the traced forward exists for GGUF, ten stages in each layer", _traced),
    "FFN-GGUF-002": ("traced equals untraced, tolerance 0", _witness),
    "FFN-GGUF-003": ("H1 or H2, by this tool's verdict", _question),
    "FFN-GGUF-004": ("a fix names the hypothesis", _named),
    "SUB-FFN-001": ("at layer 3 exactly one FFN slot is at least 3 x the median of layers 5 to 26, "
                    "the others at most 2 x", _one_slot),
    "SUB-FFN-005": ("ten stages in each layer", _rows),
    "COUNT-PARITY": ("both sides use the same number of values", _counts),
    "BAND": ("ffn_swigl std A / B of each layer in [0.5, 2.0]: display only", _band),
}


def contract_gates(text: str, name: str, gates: list[Gate]) -> list[Gate]:
    """Judge a contract's falsification tests: those that name a known gate take its verdict, the rest is NOT_MEASURED.

    text: YAML with falsification_tests: [{id, rule, ...}]. Errors: FileError.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """YAML without anchors and aliases: a few of them inside one another make gigabytes of a few lines."""

        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias, which no contract needs")
            self.depth += 1
            if self.depth > JSON_DEPTH:  # at the next level: each costs more than the one before
                raise yaml.YAMLError(f"more than {JSON_DEPTH} lists and tables inside one another")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        document = yaml.load(text, Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that cannot be
        raise FileError(f"{name} is not YAML: {error}. A contract with falsification_tests is needed.") from error
    tests = document.get("falsification_tests") if isinstance(document, dict) else None
    if not isinstance(tests, list) or not all(isinstance(t, dict) and "id" in t for t in tests):
        raise FileError(f"{name} has no falsification_tests with ids. Give a contract of that form.")
    known = {g.id: g for g in gates}
    found = []
    for test in tests:
        match = next((g for i, g in known.items() if str(test["id"]).upper().endswith(i)), None)
        verdict, measured = (match.verdict, match.measured) if match else (
            NOT_MEASURED, "no gate of this build answers it")
        found.append(Gate(str(test["id"]), str(test.get("rule", "")), measured, verdict))
    return found
