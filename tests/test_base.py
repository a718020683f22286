"""FaceMethod: what it logs, what it does about losses and gradients that are not finite."""

import csv
import logging
from itertools import pairwise

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger

from core.errors import MonofaceError
from methods.base import PATIENCE
from methods.resume import StepSeed
from tests.fakes.method import FakeFaces, FakeMethod, Weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:.*'set_vital' is deprecated",
    ),
]


def trainer(folder, steps: int, **settings) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=CSVLogger(folder, ""),
        log_every_n_steps=1,
        callbacks=[StepSeed(0)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )


def state(method: FakeMethod) -> list[torch.Tensor]:
    return [value.clone() for value in method.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_terms_are_logged_unweighted_and_their_weighted_sum(tmp_path):
    method = FakeMethod(weights=Weights(landmark=3.0, regularization=0.5))
    trainer(tmp_path, 5).fit(method, FakeFaces())
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for stage in ("train", "val"):
        row = next(row for row in rows if row[f"{stage}/loss"])
        landmark, regularization, loss = (
            float(row[f"{stage}/{name}"]) for name in ("landmark", "regularization", "loss")
        )
        assert loss == pytest.approx(3.0 * landmark + 0.5 * regularization, rel=1e-5)
    assert all(float(row["train/gradient_norm"]) > 0 for row in rows if row["train/loss"])


def test_only_steps_whose_log_is_kept_are_logged(tmp_path, monkeypatch):
    logged = []
    log = FakeMethod.log

    def counted(self, name, *arguments, **options):
        logged.append((self.global_step, name))
        log(self, name, *arguments, **options)

    monkeypatch.setattr(FakeMethod, "log", counted)
    runs = trainer(tmp_path, 7, limit_val_batches=0)
    runs.log_every_n_steps = 3
    runs.fit(FakeMethod(nan_from=1, nan_steps=1), FakeFaces())
    assert {step for step, _ in logged} == {2, 5}
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train/skipped"]) for row in rows] == [("2", "1.0"), ("5", "1.0")]
    assert all(row["train/loss"] for row in rows)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_are_clipped_also_for_fused_optimizers(tmp_path, precision):
    norms = []

    class Fused(FakeMethod):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

        def on_train_batch_end(self, *_):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

    for limit in (None, 1e-3):
        settings = {"precision": precision, "gradient_clip_val": limit}
        trainer(tmp_path / str(limit), 2, **settings).fit(Fused(), FakeFaces())
    assert min(norms[:2]) > 2e-3
    assert norms[2:] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_predictions_are_those_of_the_evaluated_network_without_gradients(tmp_path):
    method, faces = FakeMethod(), FakeFaces()
    first = trainer(tmp_path, 1).predict(method, faces)[0]
    expected = method.eval()(next(iter(faces.predict_dataloader()))["images"])
    torch.testing.assert_close(first.landmarks, expected.landmarks)
    assert not first.landmarks.requires_grad


def test_bad_step_changes_nothing_and_is_counted(tmp_path, caplog):
    method = FakeMethod(nan_from=2, nan_steps=3)
    states = []
    method.on_train_batch_end = lambda *_: states.append(state(method))
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 8).fit(method, FakeFaces())
    changed = [not same(a, b) for a, b in pairwise(states)]
    assert changed == [True, False, False, False, True, True, True]
    assert method.skipped == 3
    messages = [r.getMessage() for r in caplog.records if r.name == "methods.base"]
    assert len(messages) == 3
    assert messages[0].startswith("step 2 skipped (1 so far): landmark is nan for id")


def test_bad_input_does_not_reach_batch_norm_and_is_named(tmp_path, caplog):
    method, faces = FakeMethod(), FakeFaces()
    faces.dataset.images[7, 1, 0, 0, 0] = torch.nan
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 5, limit_val_batches=0).fit(method, faces)
    assert method.skipped == 1
    assert all(value.isfinite().all() for value in state(method))
    cause = "landmark is nan, regularization is nan; images not finite in id7/video/clip/1"
    assert cause in caplog.text


def test_finite_loss_with_a_gradient_that_is_not_is_skipped(tmp_path, caplog):
    method = FakeMethod()
    terms = method.terms

    def root(batch):  # sqrt at 0: value 0, gradient inf * 0
        found = terms(batch)
        found["landmark"] = (0 * found["landmark"]).sqrt()
        return found

    method.terms = root
    before = state(method)
    trainer(tmp_path, 2).fit(method, FakeFaces())
    assert method.skipped == 2
    assert same(before, state(method))
    assert "the losses are finite, their gradient is not" in caplog.text


def test_accumulated_gradients_with_a_bad_batch_are_dropped_together(tmp_path, caplog):
    method = FakeMethod(nan_from=0, nan_steps=1)  # the first of the first two
    before = state(method)
    trainer(tmp_path, 1, accumulate_grad_batches=2).fit(method, FakeFaces())
    assert method.skipped == 1
    assert same(before, state(method))


def test_training_stops_after_many_bad_steps_in_a_row(tmp_path):
    method = FakeMethod(nan_from=3, nan_steps=100)
    with pytest.raises(MonofaceError, match=r"stopped at step 12.*landmark is nan for id"):
        trainer(tmp_path, 100).fit(method, FakeFaces())
    assert method.skipped == PATIENCE


def test_counts_go_on_after_a_resume(tmp_path):
    method, first = FakeMethod(nan_from=1, nan_steps=100), trainer(tmp_path, 5)
    first.fit(method, FakeFaces())
    assert method.skipped == 4
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed = FakeMethod(nan_from=0, nan_steps=100)
    with pytest.raises(MonofaceError, match="stopped at step 10"):
        trainer(tmp_path, 100).fit(resumed, FakeFaces(), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.skipped == PATIENCE


def test_bad_steps_between_good_ones_do_not_stop_it(tmp_path):
    method = FakeMethod()
    faces = FakeFaces(nan_landmarks=3)  # one batch in each epoch of five
    trainer(tmp_path, 60, limit_val_batches=0).fit(method, faces)
    assert method.skipped == 12
    assert all(value.isfinite().all() for value in state(method))


def test_validation_names_what_is_not_finite(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 1).validate(FakeMethod(), FakeFaces(nan_landmarks=3), verbose=False)
    assert "landmark is nan; landmarks not finite in id3/video/clip/1" in caplog.text
