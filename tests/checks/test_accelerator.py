"""What the checker of compiled programs counts, on short texts of known costs; no compiler for accelerators is needed."""

import json

import jax
import jax.numpy as jnp
import pytest

from checks.accelerator import bound, hlo, page, rows, targets, trips
from lasa_jax.errors import InputError

H100, V5E = targets.TARGETS["h100"], targets.TARGETS["v5e"]
MB = 2**18  # values of float32 in a mebibyte

FRAMES = """HloModule jit_f, is_scheduled=true

FileNames
1 "/anywhere/lasa_jax/ops/order.py"

FunctionNames
1 "_narrow"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

"""


def of(entry: str, others: str = "", target: targets.Target = H100, **given) -> bound.Bound:
    """The bound of an entry computation, with others before it."""
    text = f"{FRAMES}{others}\nENTRY %main (x: f32[4]) -> f32[4] {{\n{entry}\n}}\n"
    return bound.of(hlo.parse(text), target, **given)


def one(entry: str, others: str = "", **given) -> bound.Kernel:
    (kernel,) = of(entry, others, **given).kernels
    return kernel


def test_a_kernel_costs_its_bytes_or_its_launch():
    small = of("%x = f32[4] parameter(0)\nROOT %y = f32[4]{0} negate(%x)")
    assert (small.launches, small.bytes, small.seconds) == (1, 32, H100.launch)
    large = of(f"%x = f32[100,{MB}] parameter(0)\nROOT %y = f32[100,{MB}]{{1,0}} negate(%x)")
    assert large.seconds == pytest.approx(2 * 100 * 2**20 / H100.bandwidth)


SLICES = """%sliced (p: f32[100,1000], i: s32[]) -> f32[1,1000] {
  %p = f32[100,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %named = f32[100,1000]{1,0} bitcast(%p)
  ROOT %s = f32[1,1000]{1,0} dynamic-slice(%named, %i, %zero), dynamic_slice_sizes={1,1000}
}
%updated (p: f32[100,1000], u: f32[1,1000], i: s32[]) -> f32[100,1000] {
  %p = f32[100,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %d = f32[100,1000]{1,0} dynamic-update-slice(%p, %u, %i, %zero)
}
"""


def test_of_what_is_sliced_the_slice_counts():
    start = "%x = f32[100,1000] parameter(0)\n%i = s32[] parameter(1)\n"
    read = one(f"{start}ROOT %f = f32[1,1000]{{1,0}} fusion(%x, %i), kind=kLoop, calls=%sliced", SLICES)
    assert (read.charge.read, read.charge.written) == (4000 + 4, 4000)
    start += "%u = f32[1,1000] parameter(2)\n"
    kept = one(f"{start}ROOT %f = f32[100,1000]{{1,0}} fusion(%x, %u, %i), kind=kLoop, calls=%updated", SLICES)
    assert (kept.charge.read, kept.charge.written) == (4000 + 4, 4000)


LOOP = """%body (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%c)
}
%goes_on (c: f32[4]) -> pred[] {
  %c = f32[4]{0} parameter(0)
  ROOT %b = pred[] compare(%c, %c), direction=LT
}
"""
WHILE = "%x = f32[4] parameter(0)\nROOT %w = f32[4]{0} while(%x), condition=%goes_on, body=%body, "


def test_a_loop_whose_length_is_known_counts_so_often():
    found = of(WHILE + 'backend_config={"known_trip_count":{"n":"7"}}', LOOP)
    assert found.launches == 7
    assert found.seconds == pytest.approx(7 * H100.launch)
    assert found.loops[0].known == "compiler"


def test_a_loop_of_unknown_length_counts_once_and_the_host_looks():
    found = of(WHILE + "metadata={stack_frame_id=1}", LOOP)
    assert found.loops[0] == bound.Loop("order.py _narrow", 1, 1, "counted once", 2)
    assert found.launches == 2  # the body and its condition
    assert found.seconds == pytest.approx(3 * H100.launch + 2 * H100.check)
    measured = of(WHILE + "metadata={stack_frame_id=1}", LOOP, trips=trips.given({"order.py _narrow": [5]}))
    assert measured.launches == 2
    assert measured.seconds == pytest.approx((5 + 6) * H100.launch + 6 * H100.check)


def test_a_counter_that_is_compared_with_a_number_is_a_known_length():
    """A TPU's compiler does not note it."""
    counter = """%body (c: s32[]) -> s32[] {
  %c = s32[] parameter(0)
  ROOT %n = s32[] negate(%c)
}
%goes_on (c: s32[]) -> pred[] {
  %c = s32[] parameter(0)
  %most = s32[]{:T(128)} constant(9)
  ROOT %b = pred[] compare(%c, %most), direction=LT
}
"""
    found = of("%x = s32[] parameter(0)\nROOT %w = s32[] while(%x), condition=%goes_on, body=%body", counter, V5E)
    assert (found.launches, found.loops[0].trips, found.loops[0].known) == (9, 9, "compiler")


def test_of_a_condition_the_longest_branch_counts():
    branches = """%short (c: f32[4]) -> f32[4] {
  ROOT %c = f32[4]{0} parameter(0)
}
%long (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  %a = f32[4]{0} negate(%c)
  ROOT %b = f32[4]{0} negate(%a)
}
"""
    start = "%p = s32[] parameter(0)\n%x = f32[4] parameter(1)\n"
    found = of(f"{start}ROOT %r = f32[4]{{0}} conditional(%p, %x, %x), branch_computations={{%short, %long}}", branches)
    assert found.launches == 2
    assert found.seconds == pytest.approx(2 * H100.launch + H100.check)


@pytest.mark.parametrize(
    ("attributes", "gpu", "tpu"),
    [
        ("operand_precision={highest,highest}", "float32", "float32"),
        ("operand_precision={high,high}", "tf32", "tf32"),
        ("", "tf32", "bfloat16"),
    ],
)
def test_products_are_charged_at_their_precision(attributes, gpu, tpu):
    text = f"""%a = f32[100,300] parameter(0)
%b = f32[300,200] parameter(1)
ROOT %d = f32[100,200]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, {attributes}"""
    assert one(text).charge.products == {gpu: 2 * 100 * 300 * 200}
    assert one(text, target=V5E).charge.products == {tpu: 2 * 100 * 300 * 200}


CONVOLVED = 2 * (8 * 32 * 32 * 64) * (3 * 3 * 16)


@pytest.mark.parametrize(
    ("call", "result", "operands"),
    [
        ("Forward", "8,32,32,64", ("8,32,32,16", "3,3,16,64")),
        ("BackwardInput", "8,32,32,16", ("8,32,32,64", "3,3,16,64")),
        ("BackwardFilter", "3,3,16,64", ("8,32,32,16", "8,32,32,64")),
    ],
)
def test_cudnn_is_charged_by_its_shapes(call, result, operands):
    text = f"""%a = f32[{operands[0]}] parameter(0)
%b = f32[{operands[1]}] parameter(1)
ROOT %c = (f32[{result}]{{3,2,1,0}}, u8[999]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv{call}", \
backend_config={{"operand_precision":["HIGHEST","HIGHEST"]}}"""
    charge = one(text).charge
    assert charge.products == {"float32": CONVOLVED}
    assert charge.written == 4 * eval(result.replace(",", "*"))  # noqa: S307  (numbers of this file)


def test_cublas_and_cusolver_are_charged_by_their_shapes():
    text = """%a = f32[5,100,300] parameter(0)
%b = f32[5,300,200] parameter(1)
ROOT %c = (f32[5,100,200]{2,1,0}, s8[999]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}"""
    assert one(text).charge.products == {"tf32": 2 * 5 * 100 * 200 * 300}
    text = """%a = f32[5,100,100] parameter(0)
ROOT %c = (f32[5,100,100]{2,1,0}, f32[5,100]{1,0}, s32[5]{0}) custom-call(%a), \
custom_call_target="cusolver_syevd_ffi\""""
    found = of(text)
    assert found.products == {"float32": 9 * 5 * 100**3}
    assert found.seconds == pytest.approx(5 * 100 * H100.launch)  # its steps wait for each other


def test_what_cannot_be_counted_is_said():
    found = of('%x = f32[4] parameter(0)\nROOT %y = f32[4]{0} custom-call(%x), custom_call_target="mystery"')
    assert found.unknown == ["mystery"]


def test_collectives_and_the_fast_memory_of_a_tpu():
    text = """%x = f32[1000]{0:T(1024)} parameter(0)
%fast = f32[1000]{0:T(1024)S(1)} negate(%x)
%s = f32[1000]{0:T(1024)} all-reduce-start(%fast), to_apply=%add
ROOT %d = f32[1000]{0:T(1024)} all-reduce-done(%s)"""
    found = of(text, target=V5E)
    assert found.collectives == {"all-reduce": 1}
    assert [kernel.charge[:2] for kernel in found.kernels] == [(0, 4000), (4000, 0)]
    moving = of(
        """%x = f32[1000]{0:T(1024)} parameter(0)
%c = (f32[1000]{0:T(1024)S(1)}, f32[1000]{0:T(1024)}, u32[]{:S(2)}) copy-start(%x)
%s = ((f32[1000]{0:T(1024)}), f32[100]{0:T(1024)S(1)}, u32[]{:S(2)}) slice-start(%x), slice={[0:100]}""",
        target=V5E,
    )
    assert [kernel.charge.written for kernel in moving.kernels] == [0, 0]
    assert moving.bytes == pytest.approx(4000 + 400, abs=8)


def test_a_large_sort_takes_several_kernels():
    text = "%x = f32[100,{0}] parameter(0)\nROOT %y = f32[100,{0}]{{1,0}} sort(%x), dimensions={{{1}}}, to_apply=%less"
    assert one(text.format(4096, 0)).charge.launches == 1
    assert one(text.format(8192, 1)).charge.launches == 1 + 2 + 3


def test_trips_are_counted():
    def halved(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda c: jnp.max(c) > 1, lambda c: c / 2, x)

    assert trips.counted(jax.jit(halved), jnp.array([3.0, 60.0])) == {"": [6]}  # of no file of the package
    assert trips.counted(jax.vmap(halved), jnp.array([[3.0], [60.0]])) == {"": [6]}  # the longest of a batch


def test_a_target_that_cannot_be_compiled_for():
    with pytest.raises(InputError, match="target 'abacus': allowed are h100, v5e"):
        targets.devices("abacus", 1)
    for name, target in targets.TARGETS.items():
        try:
            assert len(targets.devices(name, 1)) == 1
        except InputError as error:
            assert f"pip install '{target.install}'" in str(error)  # noqa: PT017  (installed on some machines)


def test_the_page_is_made_from_the_table():
    assert page.PAGE.read_text() == page.text(json.loads(rows.TABLE.read_text()))
