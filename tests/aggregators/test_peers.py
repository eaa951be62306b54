"""What the unit tests of ByzFL, Flower, Blades and TensorFlow Federated check of rules, with numbers of our own.

docs/peers_tests.md says which of their tests each of these stands beside, and why others have none here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.aggregators.krum import nearest_window
from lasa_jax.testing import built_in, known

KEY = jax.random.key(0)
EVEN = np.array([[-2.0, 0.5, 8.0], [1.0, 2.5, 4.0], [4.0, 4.5, 0.0]], np.float32)  # three clients on a line


def result(rule, updates, f: int = 0):
    """The update of one round, and the diagnostics."""
    state = rule.init(jax.tree.map(lambda x: np.asarray(x)[0], updates))
    context = known(rule, updates)
    run = jax.jit(lambda updates, f: rule.aggregate(updates, state, key=KEY, num_malicious=f, **context)[::2])
    return jax.tree.map(np.asarray, run(updates, f))


def of_rows(rule, rows, f: int = 0) -> np.ndarray:
    return result(rule, {"w": np.asarray(rows, np.float32)}, f)[0]["w"]


@pytest.mark.parametrize(
    "rule",
    [
        aggregators.fedavg(),
        aggregators.median(),
        aggregators.trimmed_mean(1),
        aggregators.geometric_median(),
        aggregators.centered_clipping(clip_radius=100.0),
    ],
    ids=["mean", "median", "trimmed mean", "geometric median", "centered clipping"],
)
def test_clients_at_even_steps_on_a_line_give_the_one_in_the_middle(rule):
    np.testing.assert_allclose(of_rows(rule, EVEN), EVEN[1], atol=1e-3)


def test_the_mean_takes_every_client_for_one():
    """Also scalars, and several leaves: no client counts by its number of examples."""
    updates = {"scale": np.array([2.0, 4.0, 12.0]), "w": np.stack([np.full((2, 2), x) for x in (1.0, -3.0, 5.0)])}
    update, info = result(aggregators.fedavg(), updates)
    assert update["scale"].shape == ()
    np.testing.assert_allclose(update["scale"], 6)
    np.testing.assert_allclose(update["w"], np.ones((2, 2)), rtol=1e-6)
    assert info.weight["w"].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("count", "wanted"), [(3, [0.3, 0.7]), (4, [0.35, 1.05])])
def test_the_median_of_an_even_number_is_between_the_middle_two(count, wanted):
    rows = [[0.1, 0.7], [0.9, 0.2], [0.3, 1.4], [0.4, 8.0]][:count]
    np.testing.assert_allclose(of_rows(aggregators.median(), rows), wanted, atol=1e-6)


def test_the_trimmed_mean_drops_one_value_at_each_end_of_each_coordinate():
    rows = [[1.0, 7.0, 2.0], [2.0, -50.0, 2.0], [90.0, 6.0, 2.0], [4.0, 5.0, 2.0]]
    np.testing.assert_allclose(of_rows(aggregators.trimmed_mean(1), rows), [3.0, 5.5, 2.0])
    scalars, _ = result(aggregators.trimmed_mean(1), np.array([0.5, 1.5, 3.5, 700.0], np.float32))
    assert (scalars.shape, scalars.item()) == ((), 2.5)


def test_at_the_geometric_median_unit_vectors_to_the_clients_add_up_to_zero():
    rows = np.array([[0.0, 3.0, 1.0], [2.0, -1.0, 0.5], [5.0, 2.0, -2.0], [-4.0, 0.0, 0.0], [1.0, 9.0, 4.0]])
    away = rows - of_rows(aggregators.geometric_median(max_iterations=1000), rows)
    total = (away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0)
    np.testing.assert_allclose(total, 0, atol=1e-3)


class TestKrum:
    """Among three clients f is 0, whatever is assumed, and one neighbour counts."""

    def test_the_client_whose_neighbour_is_nearest(self):
        rows = np.float32([[0.1] * 4, [0.6] * 4, [0.8] * 4])
        np.testing.assert_array_equal(of_rows(aggregators.krum(1), rows), rows[1])

    def test_of_clients_at_even_steps_the_one_in_the_middle(self):
        """All scores are the same: not the order of the clients decides, but who is nearer to all."""
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            np.testing.assert_array_equal(of_rows(aggregators.krum(1), EVEN[order]), EVEN[1])

    def test_what_is_returned_is_a_client_to_the_last_bit(self):
        rows = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
        update, info = result(aggregators.krum(2), {"a": rows[:, :2], "b": rows[:, 2:]})
        (chosen,) = np.flatnonzero(np.asarray(info.weight["a"]))
        np.testing.assert_array_equal(np.concatenate([update["a"], update["b"]]), rows[chosen])

    def test_multi_krum_averages_the_best(self):
        rows = [[0.1] * 4, [0.4] * 4, [1.9] * 4]
        np.testing.assert_allclose(of_rows(aggregators.multi_krum(1, num_selected=2), rows), [0.25] * 4, atol=1e-6)

    def test_bulyan_without_malicious_clients_is_the_mean(self):
        rows = np.array([0.3, 0.4, 0.9, 17.0, 0.2, 0.2])[:, None] * np.ones(4)
        np.testing.assert_allclose(of_rows(aggregators.bulyan(0), rows), rows.mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "center", "width", "mean"),
    [
        ([3.0, 5.0, 2.5], 3.0, 2, 2.75),
        ([2.0, -0.5, 8.0], 0.0, 1, -0.5),
        ([2.0, -1.0, 5.0], 0.0, 3, 2.0),  # all of them
        ([7.0, 7.0, 7.0], 40.0, 2, 7.0),
        ([-3.0, 1.0, 1.5, 6.0, 9.0], 2.0, 3, 8.5 / 3),
    ],
)
def test_the_values_of_a_coordinate_that_are_nearest_to_a_center(values, center, width, mean):
    """Bulyan's second step, for each coordinate of each layer by itself; with columns of two different orders."""
    ordered = np.sort(np.array([values, np.negative(values)], np.float32).T, axis=0)
    centers = jnp.array([center, -center], jnp.float32)
    first = nearest_window(jnp.asarray(ordered), jnp.int32(len(values)), centers, width)
    found = [ordered[at : at + width, column].mean() for column, at in enumerate(np.asarray(first))]
    np.testing.assert_allclose(found, [mean, -mean], rtol=1e-6)


def test_dnc_drops_the_client_that_stands_apart_in_all_coordinates():
    rows = np.array([[1.0, 2.0, 2.5], [-9.0, 14.0, -6.0], [2.0, 1.5, 3.0], [1.5, 2.5, 2.0]])
    np.testing.assert_allclose(
        of_rows(aggregators.dnc(1, 3, assumed_malicious=1), rows), rows[[0, 2, 3]].mean(0), rtol=1e-6
    )


class TestClipping:
    """By the norm over all leaves: five entries of v have the norm v * sqrt(5)."""

    VALUES = (0.5, 2.0, 10.0)

    def updates(self):
        return {"scale": np.float32(self.VALUES), "w": np.stack([np.full((2, 2), x, np.float32) for x in self.VALUES])}

    def test_a_client_beyond_the_limit_is_scaled_to_it_and_others_are_not(self):
        limit = 2 * np.sqrt(5)  # the second client's own norm
        update, _ = result(aggregators.norm_clipped_mean(limit), self.updates())
        np.testing.assert_allclose(update["w"], np.full((2, 2), (0.5 + 2 + 2) / 3), rtol=1e-6)
        np.testing.assert_allclose(update["scale"], 1.5, rtol=1e-6)

    @pytest.mark.parametrize(("limit", "wanted"), [(1.0, 1.0 / np.sqrt(5)), (5.0, np.sqrt(5)), (1e9, 10.0)])
    def test_before_a_rule_and_with_a_limit_that_grows(self, limit, wanted):
        """The limit is a number of the program. The largest of the clipped values is that of the client far out."""
        rule = jax.jit(lambda limit: self.largest(limit))
        np.testing.assert_allclose(rule(limit), wanted, rtol=1e-6)

    def largest(self, limit):
        chained = aggregators.chain(aggregators.clip_to_norm(limit), aggregators.krum(0))
        far = {name: x[2:].repeat(3, axis=0) for name, x in self.updates().items()}
        return chained.aggregate(far, chained.init(far), key=KEY, num_malicious=0)[0]["scale"]

    def test_to_the_median_of_the_norms(self):
        """As a limit that follows the clients: half of them are not touched."""
        rule = aggregators.chain(aggregators.clip_to_median_norm(), aggregators.fedavg())
        update, _ = result(rule, self.updates())
        np.testing.assert_allclose(update["scale"], (0.5 + 2 + 2) / 3, rtol=1e-6)

    def test_leaves_of_two_types_are_clipped_together_and_keep_them(self):
        updates = {"half": np.float16([3.0, 0.3]), "single": np.float32([4.0, 0.4])}
        update, _ = result(aggregators.norm_clipped_mean(2.5), updates)
        assert (update["half"].dtype, update["single"].dtype) == (np.float16, np.float32)
        np.testing.assert_allclose([update["half"], update["single"]], [(1.5 + 0.3) / 2, (2.0 + 0.4) / 2], rtol=1e-3)


class TestMixing:
    """What a rule reads behind mixing or clipping, row by row."""

    def rows(self, step, rows) -> np.ndarray:
        mixed = step(aggregators.Rows.of({"w": np.asarray(rows, np.float32)}), key=KEY, num_malicious=1)
        return np.asarray(mixed.written["w"])

    def test_each_row_is_the_mean_of_its_nearest(self):
        """With one of three left out, each is mixed with one other; of two as near the first."""
        near = [EVEN[:2].mean(0), EVEN[:2].mean(0), EVEN[1:].mean(0)]
        np.testing.assert_allclose(self.rows(aggregators.nearest_neighbour_mixing(1), EVEN), near, rtol=1e-6)

    def test_each_row_is_scaled_to_the_limit(self):
        norms = np.linalg.norm(EVEN, axis=1, keepdims=True)
        np.testing.assert_allclose(
            self.rows(aggregators.clip_to_norm(5.0), EVEN), EVEN * np.minimum(1, 5 / norms), rtol=1e-6
        )


AVERAGES = ("fedavg", "fldetector", "robust_learning_rate", "sparsefed")


@pytest.mark.parametrize("name", aggregators.names())
def test_one_client_far_out_does_not_come_near_the_result_of_a_robust_rule(name):
    """The rules that promise nothing against one are those that average, as FLDetector does in its first round."""
    rows = np.array(
        [[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1], [0.9, 1.9, 2.9, 3.9], [1.2, 2.0, 3.2, 4.0], [0.8, 2.0, 2.8, 4.0]]
    )
    rows = np.concatenate([rows, rows.mean(0, keepdims=True), [[100.0, 200.0, -300.0, 400.0]]])
    found = of_rows(built_in(name), rows, f=1)
    near, far = (np.abs(found - center).mean() for center in (rows[:6].mean(0), rows[6]))
    assert (near < 0.1 * far) == (name not in AVERAGES)
