"""benchmarks/scaling.py: the counts from programs, and the formulas for time."""

import pytest

import deepprop as dp

programs = pytest.importorskip("benchmarks.programs", reason="the source distribution has none")
clusters = pytest.importorskip("benchmarks.clusters")

LOOP = """\
HloModule by_hand

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%fused (p: f32[5,4,6], i: s32[], q: f32[2,4]) -> f32[2,6] {
  %p = f32[5,4,6]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %q = f32[2,4]{1,0} parameter(2)
  %slice = f32[1,4,6]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,4,6}
  %w = f32[4,6]{1,0} bitcast(%slice)
  ROOT %dot = f32[2,6]{1,0} dot(%q, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f32[5,4,6], /*index=2*/f32[2,4])) -> (s32[], f32[5,4,6], f32[2,4]) {
  %t = (s32[], f32[5,4,6]{2,1,0}, /*index=2*/f32[2,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %W = f32[5,4,6]{2,1,0} get-tuple-element(%t), index=1
  %A = f32[2,4]{1,0} get-tuple-element(%t), index=2
  %Z = f32[2,6]{1,0} fusion(%W, %j, %A), kind=kLoop, calls=%fused
  %all-reduce.1 = (f32[2,6]{1,0}, f32[2,4]{1,0}) all-reduce(%Z, %A), replica_groups=GROUPS, to_apply=%sum
  %next = f32[2,4]{1,0} get-tuple-element(%all-reduce.1), index=1
  ROOT %out = (s32[], f32[5,4,6]{2,1,0}, f32[2,4]{1,0}) tuple(%j, %W, %next)
}

%condition (t.1: (s32[], f32[5,4,6], f32[2,4])) -> pred[] {
  %t.1 = (s32[], f32[5,4,6]{2,1,0}, f32[2,4]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (start: (s32[], f32[5,4,6], f32[2,4])) -> f32[2,32] {
  %start = (s32[], f32[5,4,6]{2,1,0}, f32[2,4]{1,0}) parameter(0)
  %loop = (s32[], f32[5,4,6]{2,1,0}, f32[2,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[2,4]{1,0} get-tuple-element(%loop), index=2
  %narrow = bf16[2,4]{1,0} convert(%last)
  ROOT %all = bf16[2,32]{1,0} all-gather(%narrow), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}
}
"""
COUNTED = LOOP.replace("GROUPS", "{{0,2,4,6},{1,3,5,7}}")


def test_a_loop_counts_as_often_as_it_runs():
    counts = programs.counts(COUNTED)
    assert counts.flops == 5 * 2 * (2 * 4 * 6)
    assert counts.product_bytes == 5 * 4 * (4 * 6 + 1 + 2 * 4 + 2 * 6)  # of W, its slice
    assert counts.other_bytes == 2 * 4 * (4 + 2)
    assert counts.kernels == 5 + 1
    reduced, gathered = counts.exchanges
    assert reduced == ("all-reduce", 4 * (2 * 6 + 2 * 4), (0, 2, 4, 6), 5)
    assert gathered == ("all-gather", 8 * 2 * 2 * 4, tuple(range(8)), 1)
    assert reduced.axis(2) == "data"
    assert gathered.axis(8) == "model"
    with pytest.raises(ValueError, match="neither axis"):
        reduced.axis(4)


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="a loop of unknown length: loop"):
        programs.counts(COUNTED.replace("known_trip_count", "other"))


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", (0, 2, 4, 6)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
        ("mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("mesh['a'=1,'b'=8] {'b'}", tuple(range(8))),
    ],
)
def test_groups_are_read_in_every_notation(written, group):
    assert programs.group_of(f", replica_groups={written}, to_apply=%sum") == group


@pytest.mark.ordinary(1)
@pytest.mark.usefixtures("optax_types")
@pytest.mark.parametrize(
    ("sizes", "data", "model"),
    [
        ((16, 32, 64, 32, 8), 8, 1),
        ((16, 32, 64, 32, 8), 2, 4),
        ((16, 32, 64, 8), 2, 4),  # the last layer is not divided
        ((16, 32, 32, 32, 32, 32, 8), 2, 4),
    ],
)
def test_the_counts_of_a_step_agree_with_the_closed_form(sizes, data, model):
    stack, local = len(sizes) == 7, 8
    options = {"residual": True, "stack": True} if stack else {}
    mesh = dp.mesh(data=data, model=model)
    program = programs.compiled_step(sizes, mesh, data * local, **options)
    counts = programs.counts(program.as_text())
    assert counts.flops * model == programs.closed_flops(sizes, local, model, stack)
    found = {"data": 0, "model": 0}
    for exchange in counts.exchanges:
        found[exchange.axis(model)] += exchange.times * exchange.bytes
    assert found == programs.closed_exchanges(sizes, local, model, stack)


@pytest.mark.usefixtures("optax_types")
def test_counts_are_linear_in_the_batch_and_agree_with_xla():
    low, high, program = (
        programs.compiled_step((16, 32, 8), dp.mesh(data=8), 8 * m) for m in (32, 64, 16)
    )
    counts = programs.counts(program.as_text())
    guess = programs.line(*(programs.counts(p.as_text()) for p in (low, high)), -0.5)
    assert guess.flops == counts.flops
    assert guess.exchanges == counts.exchanges
    exchanged = 2 * sum(e.bytes for e in counts.exchanges)
    assert counts.bytes + exchanged == pytest.approx(
        program.cost_analysis()["bytes accessed"], rel=0.1
    )


def test_the_formulas_for_exchanges():
    assert clusters.ring(100, 2, 10, 1) == 100 / 10 + 2  # half and half, there and back
    assert clusters.ring(100, 4, 10, 1) == pytest.approx(15 + 6)
    assert clusters.tree(100, 8, 10, 1) == pytest.approx(17.5 + 6)
    assert clusters.torus(100, 64, 10, 1) == pytest.approx(100 / 10 * 2 * 63 / 64 + 18)
    for f in (clusters.ring, clusters.tree, clusters.torus):
        assert f(100, 1, 10, 1) == 0


SIMPLE = clusters.Hardware(
    "simple", {"float32": 100.0}, 50.0, node=4, sides=1, inside=20.0, inside_apart=20.0,
    between=5.0, start=0.5, hop_inside=0.1, hop_between=0.2, kernel=0.01,
)  # fmt: skip
ALL = clusters.Shares(products=1.0, hbm=1.0, links=1.0)


def test_an_all_reduce_sums_in_and_between_nodes():
    inside = 1.5 * 40 / 20 + 6 * 0.1
    between = 1.0 * (40 / 4) / 5 + 2 * 0.2  # two nodes; each device has its quarter
    assert clusters.all_reduce(SIMPLE, 40, 1, 1, ALL) == 0
    assert clusters.all_reduce(SIMPLE, 40, 4, 1, ALL) == pytest.approx(0.5 + inside)
    assert clusters.all_reduce(SIMPLE, 40, 8, 1, ALL) == pytest.approx(0.5 + inside + between)
    piped = clusters.all_reduce(SIMPLE, 40, 8, 1, ALL, piped=True)
    assert piped == pytest.approx(0.5 + max(inside, between))
    apart = 0.5 + 1.0 * 40 / 5 + 2 * 0.2  # each in a node of its own
    assert clusters.all_reduce(SIMPLE, 40, 2, 4, ALL) == pytest.approx(apart)


def test_a_step_is_the_sum_of_its_parts_or_overlaps_exchanges():
    gradients = programs.Exchange("all-reduce", 40, (0, 4), 1)
    activations = programs.Exchange("all-gather", 40, (0, 1, 2, 3), 3)
    counts = programs.Counts(300, 100, 25, 10, (gradients, activations))
    step = clusters.step_time(SIMPLE, counts, "float32", 2, 4, 0.5, ALL)
    assert (step.products, step.memory) == (3.0, 0.5)
    assert step.kernels == pytest.approx(0.1)
    assert step.data == pytest.approx(8.9)
    assert step.model == pytest.approx(3 * 0.5 * (0.5 + 3.6))
    assert step.apart == pytest.approx(3.6 + step.model + 8.9)
    assert step.apart - step.together == pytest.approx(0.5 * 3.0)
    slow = clusters.step_time(SIMPLE, counts._replace(product_bytes=500), "float32", 1, 4, 0.5, ALL)
    assert (slow.products, slow.data) == (10.0, 0.0)
