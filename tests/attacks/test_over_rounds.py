"""What defines the attacks that go over rounds, on sensitive coordinates and against LASA; numbers are in tests/golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks
from lasa_jax.aggregators import Context
from lasa_jax.attacks import history, sparse
from lasa_jax.testing import NUM_CLIENTS, flat_rows, honest
from lasa_jax.testing.attacks import SOME

KEY = jax.random.key(0)


def flat(row) -> np.ndarray:
    return flat_rows(jax.tree.map(lambda x: np.asarray(x)[None], row))[0]


def like_one(value: float):
    return jax.tree.map(lambda x: jnp.full(x.shape[1:], value, x.dtype), honest())


def one_row(sent) -> np.ndarray:
    rows = flat_rows(sent)[SOME]
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    return rows[0]


@pytest.mark.parametrize("angle", [270.0, 90.0])
def test_rop_steps_aside_from_what_the_server_returned(angle):
    last = jax.tree.map(lambda x: jnp.asarray(x[0]), honest(3))
    attack = attacks.rop(z=0.7, angle=angle, history=1.0)
    row = one_row(attack.craft(honest(), (), SOME, key=KEY, context=Context(last_update=last))[0])
    step = row - flat(last)
    np.testing.assert_allclose(np.linalg.norm(step), 0.7, rtol=1e-5)
    assert abs(step @ flat(last)) < 1e-5
    assert np.sign(step.sum()) == np.sign(angle - 180) * -1


def test_rop_of_updates_that_are_all_zero_is_finite():
    zeros = {"w": np.zeros((NUM_CLIENTS, 3), np.float32)}
    sent, _ = attacks.rop(z=1.0).craft(zeros, (), SOME, key=KEY, context=Context(last_update={"w": jnp.zeros(3)}))
    np.testing.assert_allclose(sent["w"][SOME][0], -np.full(3, 3**-0.5), rtol=1e-6)


class TestPoisonedFL:
    def play(self, attack, follows: float, rounds: int = 12, keys=None):
        """Rounds in which the server moves by that much of the crafted row, and 0.1 elsewhere."""
        params, last, found = like_one(0.0), like_one(0.0), []
        state = attack.init(params)
        step = jax.jit(lambda u, state, key, context: attack.craft(u, state, SOME, key=key, context=context))
        for index in range(rounds):
            context = Context(params=params, last_update=last, round_index=jnp.int32(index + 1))
            sent, state = step(honest(index), state, jax.random.key(index if keys is None else keys[index]), context)
            found.append((sent, state))
            last = jax.tree.map(lambda x: follows * x[np.flatnonzero(SOME)[0]] + 0.1, sent)
            params = jax.tree.map(jnp.add, params, last)
        return found

    def test_the_signs_are_drawn_once_and_both_occur(self):
        first, other = self.play(attacks.poisonedfl(), 0.1), self.play(attacks.poisonedfl(), 0.1, keys=range(5, 17))
        signs = flat(first[0][1].sign)
        assert set(signs) == {-1, 1}
        for sent, state in first[1:]:
            np.testing.assert_array_equal(flat(state.sign), signs)
            assert (np.sign(one_row(sent)) * signs >= 0).all()
        assert (flat(other[0][1].sign) != signs).any()

    def test_the_first_round_is_honest(self):
        sent, state = self.play(attacks.poisonedfl(), 0.1, rounds=1)[0]
        jax.tree.map(np.testing.assert_array_equal, sent, honest(0))
        np.testing.assert_allclose(flat(state.row), flat_rows(honest(0))[SOME].mean(0), atol=1e-6)

    def test_rows_are_as_long_as_the_factor_says(self):
        found = self.play(attacks.poisonedfl(), 0.1, rounds=4)
        sent = one_row(found[1][0])
        step = 0.1 * flat(jax.tree.map(lambda x: x[np.flatnonzero(SOME)[0]], honest(0))) + 0.1
        np.testing.assert_allclose(np.linalg.norm(sent), 8 * np.linalg.norm(step), rtol=1e-5)

    @pytest.mark.parametrize(("follows", "factors"), [(0.0, [8, 8, 8, 5.6]), (0.5, [8, 8, 8, 8])])
    def test_a_server_that_resists_makes_it_weaker(self, follows, factors):
        found = self.play(attacks.poisonedfl(test_every=3), follows, rounds=4)
        np.testing.assert_allclose([state.factor for _, state in found], factors, rtol=1e-6)

    def test_it_does_not_become_too_weak(self):
        found = self.play(attacks.poisonedfl(factor=0.9, test_every=1), 0.0)
        np.testing.assert_allclose(min(float(state.factor) for _, state in found), 0.63, rtol=1e-6)

    @pytest.mark.parametrize("size", [1, 2, 10, 1000])
    def test_the_99_percent_point_is_exact(self, size):
        row = [1]
        for _ in range(size):  # Pascal's triangle
            row = [a + b for a, b in zip([0, *row], [*row, 0], strict=True)]
        below, k = 0, -1
        while below * 100 < 99 * 2**size:
            k += 1
            below += row[k]
        assert history.upper_point(size) == k

    def test_the_99_percent_point_of_a_large_model(self):
        size = 11_173_962
        assert abs(history.upper_point(size) - (size / 2 + 2.3263479 * size**0.5 / 2)) <= 1


def test_mpaf_pulls_to_the_model_that_the_run_began_with():
    attack = attacks.mpaf(factor=10.0)
    state = attack.init(like_one(1.0))
    for model, wanted in ((1.0, 0.0), (3.0, -20.0)):
        sent, state = attack.craft(honest(), state, SOME, key=KEY, context=Context(params=like_one(model)))
        np.testing.assert_array_equal(one_row(sent), np.full(107, wanted))


class TestHybridSparse:
    def found(self, state, malicious, model, updates):
        attack = attacks.hybrid_sparse(share=0.1)
        craft = jax.jit(lambda u, s, m, p: attack.craft(u, s, m, key=KEY, context=Context(params=p)))
        return craft(updates, attack.init(model) if state is None else state, malicious, model)

    def test_the_mask_has_the_largest_saliencies_of_the_malicious_clients(self):
        model = jax.tree.map(lambda x: jnp.asarray(x[0]), honest(5))
        _, state = self.found(None, SOME, model, honest())
        saliency = np.abs(flat(model) * flat_rows(honest())[SOME].mean(0))
        np.testing.assert_array_equal(np.flatnonzero(flat(state.mask)), np.sort(np.argsort(saliency)[-10:]))

    def test_it_is_kept(self):
        model = jax.tree.map(lambda x: jnp.asarray(x[0]), honest(5))
        _, first = self.found(None, SOME, model, honest())
        _, second = self.found(first, ~SOME, jax.tree.map(lambda x: x[::-1], model), honest(7))
        jax.tree.map(np.testing.assert_array_equal, first, second)

    def test_it_waits_for_a_malicious_client(self):
        model = jax.tree.map(lambda x: jnp.asarray(x[0]), honest(5))
        _, nobody = self.found(None, np.zeros(NUM_CLIENTS, bool), model, honest())
        assert not nobody.found
        _, later = self.found(nobody, SOME, model, honest())
        _, at_once = self.found(None, SOME, model, honest())
        jax.tree.map(np.testing.assert_array_equal, later, at_once)

    def test_a_given_mask_needs_no_model(self):
        mask = like_one(0.0) | {"bias": jnp.ones(5)}
        attack = attacks.hybrid_sparse(mask=mask, large_factor=3.0, z=0.0)
        assert not attack.needs
        sent, _ = attack.craft(honest(), attack.init(mask), SOME, key=KEY)
        benign = {name: x[~SOME].astype(np.float64) for name, x in honest().items()}
        np.testing.assert_allclose(sent["kernel"][1], benign["kernel"].mean(0), atol=1e-6)
        wanted = benign["bias"].mean(0) - 3 * benign["bias"].std(0, ddof=1)
        np.testing.assert_allclose(sent["bias"][1], wanted, atol=1e-5)

    def test_the_searched_row_is_within_its_bound_and_tight(self):
        mask = {name: jnp.arange(np.size(x[0])).reshape(x[0].shape) % 20 == 0 for name, x in honest().items()}
        attack = attacks.hybrid_sparse(mask=mask, searched=True, large_factor=0.5)
        row = one_row(attack.craft(honest(), attack.init(mask), SOME, key=KEY)[0])
        benign, on = flat_rows(honest())[~SOME], flat(mask) > 0
        bound = min(((benign - x) ** 2).sum() for x in benign)
        farther = np.where(on, row, benign.mean(0) + 1.001 * (row - benign.mean(0)))
        assert ((benign - row) ** 2).sum() <= bound * (1 + 1e-5)
        assert ((benign - farther) ** 2).sum() > bound


class TestLasaAttack:
    def test_every_layer_is_as_long_as_that_of_the_middle_client(self):
        sent, _ = attacks.lasa_attack().craft(honest(), (), SOME, key=KEY)
        for name, x in honest().items():
            norms = np.sort(np.linalg.norm(x[~SOME].reshape(12, -1), axis=1))
            np.testing.assert_allclose(np.linalg.norm(sent[name][1]), norms[5], rtol=1e-5)
            assert (np.sign(sent[name][1]) == -np.sign(x[~SOME].mean(0))).all()

    def test_it_is_less_noticed_by_norm_than_turned_updates_of_any_length(self):
        """In the filter of LASA its magnitude score is one of the smallest."""
        sent, _ = attacks.lasa_attack().craft(honest(), (), SOME, key=KEY)
        _, _, info = aggregators.lasa(sparsity_level=0.0).aggregate(sent, (), key=KEY, num_malicious=4)
        assert max(float(score[SOME].max()) for score in info.magnitude_score.values()) < 0.5

    def test_of_equal_counts_the_first_are_taken(self):
        values = [jnp.asarray([2.0, 0.0, 1.0]), jnp.asarray([[1.0, 1.0], [0.0, 3.0]])]
        for count in range(8):
            marked = np.concatenate([np.ravel(x) for x in sparse.first_smallest(values, count)])
            first = np.argsort([2, 0, 1, 1, 1, 0, 3], kind="stable")[:count]
            np.testing.assert_array_equal(np.flatnonzero(marked), np.sort(first))

    def test_of_clients_with_many_zeros_all_count_as_small(self):
        """As LASA drops all that are equal to its threshold."""
        rows = {"w": np.asarray([[0, 0, 0, 0, 1, 2, 3, 4, 5, 6]] * 4, np.float32)}
        counts = sparse.times_small(rows, jnp.asarray([True, True, True, False]), 0.3)
        np.testing.assert_array_equal(counts["w"], [3, 3, 3, 3, 0, 0, 0, 0, 0, 0])

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
    def test_counts_of_many_clients_are_exact(self, dtype):
        """bfloat16 has no 257, float16 no 2049."""
        rows = {"w": jnp.tile(jnp.asarray([[0, 3, 1, 2]], dtype), (2049, 1))}
        for clients in (257, 2049):
            counts = sparse.times_small(rows, jnp.arange(2049, dtype=jnp.int32) < clients, 0.5)
            np.testing.assert_array_equal(counts["w"], [clients, 0, clients, 0])
        assert sparse.times_small(rows, jnp.ones(2049, bool), 0.0)["w"].dtype == counts["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.rop(relocation=2.0), "relocation = 2.0: allowed is 0 <= relocation <= 1"),
        (lambda: attacks.poisonedfl(test_every=0), "test_every = 0: allowed is 1 <= test_every"),
        (lambda: attacks.hybrid_sparse(cap="iqrs"), "cap = 'iqrs': allowed are none, iqr, z_score"),
        (lambda: attacks.hybrid_sparse(share=0.0), "share = 0.0: allowed is 0 < share <= 1"),
        (lambda: attacks.lasa_attack(large_share=1.5), "large_share = 1.5: allowed is 0 <= large_share <= 1"),
        (lambda: attacks.mpaf(base={"w": jnp.zeros(2)}).init({"w": jnp.zeros(3)}), "base: has the shapes"),
        (lambda: attacks.poisonedfl(sign=jnp.ones(3)).init({"w": jnp.zeros(3)}), "sign: has the shapes"),
        (lambda: attacks.hybrid_sparse(mask=jnp.ones(2)).init(jnp.zeros(3)), "mask: has the shapes"),
        (lambda: attacks.rop().craft(honest(), (), SOME, key=KEY), "rop: context without what it needs"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
