"""Every image is predicted by a head that was trained without it and without its copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from evalmode.artifact.tensors import Floats
from evalmode.certification.metrics import measure_cross_validated, wilson_interval
from training.cross_validation import Fit, Predictor, cross_validate, find_equal_rows, refit_head, split_folds
from training.datasets.dataset import Indices
from training.head import HeadExamples, fit_dense, set_moments
from training.networks import PretrainedNetwork

RNG = np.random.default_rng(0)


def draw_features(targets: Indices, distance: float, dimensions: int = 8) -> Floats:
    """A cloud of points for each label, which overlaps the others the less the larger the distance is."""
    rng = np.random.default_rng(1)
    centres = distance * rng.normal(size=(int(targets.max()) + 1, dimensions))
    return (centres[targets] + rng.normal(size=(len(targets), dimensions))).astype(np.float32)


def fit_logistic(labels: int) -> Fit:
    def fit(features: Floats, targets: Indices) -> Predictor:
        scale = StandardScaler().fit(features)
        regression = LogisticRegression().fit(scale.transform(features), targets)

        def predict(some: Floats) -> np.ndarray:
            probabilities = np.zeros((len(some), labels))
            probabilities[:, regression.classes_] = regression.predict_proba(scale.transform(some))
            return probabilities

        return predict

    return fit


class TestFolds:
    def test_have_nearly_equal_sizes_and_shares_of_each_label(self) -> None:
        targets = np.repeat([0, 1, 2], [50, 23, 7])
        folds = split_folds(targets, np.arange(80), 5, seed=0)
        assert np.bincount(folds).tolist() == [16] * 5
        for label in range(3):
            counts = np.bincount(folds[targets == label], minlength=5)
            assert counts.max() - counts.min() <= 1

    def test_depend_on_the_seed_alone(self) -> None:
        targets, groups = RNG.integers(0, 4, 60), np.arange(60)
        first = split_folds(targets, groups, 5, seed=3)
        assert (split_folds(targets, groups, 5, seed=3) == first).all()
        assert (split_folds(targets, groups, 5, seed=4) != first).any()

    def test_of_a_group_are_the_same(self) -> None:
        groups = RNG.integers(0, 30, 100)
        folds = split_folds(RNG.integers(0, 3, 100), groups, 4, seed=0)
        assert all(len(set(folds[groups == group].tolist())) == 1 for group in np.unique(groups))
        assert set(folds.tolist()) == {0, 1, 2, 3}

    def test_group_equal_features_only(self) -> None:
        features = RNG.normal(size=(6, 3)).astype(np.float32)
        features[4] = features[1]
        groups = find_equal_rows(features)
        assert groups[4] == groups[1]
        assert len(set(groups.tolist())) == 5


class TestCrossValidation:
    def test_never_predicts_an_image_that_the_head_has_seen(self) -> None:
        features = RNG.normal(size=(53, 4)).astype(np.float32)
        features[50:] = features[:3]  # copies
        heads: list[tuple[Floats, Floats]] = []

        def fit(seen: Floats, targets: Indices) -> Predictor:
            assert len(seen) == len(targets)

            def predict(some: Floats) -> Floats:
                heads.append((seen, some))
                return np.full((len(some), 3), len(heads), np.float32)

            return predict

        probabilities = cross_validate(features, np.arange(53) % 3, fit, folds=5)
        assert sum(len(some) for _, some in heads) == 53
        for number, (seen, some) in enumerate(heads, 1):
            assert not {row.tobytes() for row in seen} & {row.tobytes() for row in some}
            assert {row.tobytes() for row in features[probabilities[:, 0] == number]} == {r.tobytes() for r in some}
        assert len(heads) == 5

    def test_has_no_better_accuracy_than_chance_on_noise(self) -> None:
        """Tested on the images that it was trained on, a head with more dimensions than images is always right."""
        targets = RNG.integers(0, 2, 100)
        features = RNG.normal(size=(100, 200)).astype(np.float32)
        assert (fit_logistic(2)(features, targets)(features).argmax(1) == targets).all()
        probabilities = cross_validate(features, targets, fit_logistic(2))
        assert measure_cross_validated(probabilities, targets, 5).accuracy == pytest.approx(0.5, abs=0.15)

    def test_agrees_with_the_accuracy_on_many_other_images(self) -> None:
        targets = np.random.default_rng(2).integers(0, 3, 4000)
        features = draw_features(targets, 0.6)
        few, few_targets, rest = features[:300], targets[:300], slice(300, None)
        measured = measure_cross_validated(cross_validate(few, few_targets, fit_logistic(3)), few_targets, 5)
        accuracy = (fit_logistic(3)(few, few_targets)(features[rest]).argmax(1) == targets[rest]).mean()
        assert measured.interval[0] < accuracy < measured.interval[1]
        assert 0.6 < accuracy < 0.95
        assert measured.interval == wilson_interval(round(300 * measured.accuracy), 300)
        assert (measured.images, measured.folds) == (300, 5)

    def test_fits_new_heads_as_that_of_a_network_is_fitted(self) -> None:
        targets = np.random.default_rng(2).integers(0, 3, 240)
        features = draw_features(targets, 1)
        network = PretrainedNetwork(nn.Identity(), [nn.Identity()], nn.Identity(), 8, 3, 0.5)
        before = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
        examples = HeadExamples(torch.from_numpy(features[:200]), torch.from_numpy(targets[:200]))
        predicted = refit_head(network.head, 0.01)(features[:200], targets[:200])(features[200:])
        assert all(torch.equal(before[name], tensor) for name, tensor in network.head.state_dict().items())
        set_moments(network.head, examples.features)
        fit_dense(network.head, examples, 0.01)
        expected = network.head(torch.from_numpy(features[200:])).softmax(1).detach().numpy()
        assert predicted == pytest.approx(expected, abs=1e-3)
        assert (predicted.argmax(1) == targets[200:]).mean() > 0.8

    def test_keeps_a_label_with_a_single_image(self) -> None:
        targets = np.array([0] * 20 + [1] * 20 + [2])
        probabilities = cross_validate(draw_features(targets, 3), targets, fit_logistic(3))
        assert probabilities.shape == (41, 3)
        assert probabilities[40, 2] == 0  # no other image has the label
