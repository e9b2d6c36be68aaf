"""Networks drawn by hypothesis: arguments of `problem`."""

from hypothesis import strategies as st

from tests.problems import HIDDEN, OUTPUTS


@st.composite
def networks(draw):
    sizes = draw(st.lists(st.sampled_from([1, 2, 5]), min_size=2, max_size=6))
    hidden = draw(
        st.lists(st.sampled_from(HIDDEN), min_size=len(sizes) - 2, max_size=len(sizes) - 2)
    )
    output, m = draw(st.sampled_from(OUTPUTS)), draw(st.sampled_from([1, 6]))
    return draw(st.integers(0, 2**31)), sizes, m, hidden, output, draw(st.booleans())
