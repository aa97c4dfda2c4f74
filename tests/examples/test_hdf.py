"""The paper's model: X3D with attention behind its four stages, the loss and SAM."""

import pytest
import torch

from examples.train.models import hdf, hdf_training
from hdf_modules.backbones.binding import attached_modules, attachment_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"),
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated"),
]


def test_attention_follows_every_stage():
    model, shapes = hdf(7), []
    for _, stage in attached_modules(model):
        stage.dam.register_forward_hook(lambda dam, args, x: shapes.append(tuple(x.shape[1:])))
    logits, features = model.eval()(torch.rand(1, 3, 16, 112, 112))
    assert [attachment_of(m).stage.name for _, m in attached_modules(model)] == [
        f"blocks.{i}" for i in range(1, 5)
    ]
    # Figure 2; the time axis keeps its length. (The first forward looked for the classifier too.)
    assert shapes[-4:] == [(24, 16, 28, 28), (48, 16, 14, 14), (96, 16, 7, 7), (192, 16, 4, 4)]
    assert (logits.shape, features.shape) == ((1, 7), (1, 2048))


def test_a_step_of_its_training():
    model = hdf(3, 4)
    criterion, optimizer = hdf_training(model)
    clips, labels = torch.rand(4, 3, 4, 32, 32), torch.tensor([0, 0, 1, 2])
    before = [p.detach().clone() for p in model.parameters()]
    logits, features = model(clips)
    criterion(logits, labels, features).backward()
    with optimizer.ascend(criterion):
        logits, features = model(clips)
        criterion(logits, labels, features).backward()
    optimizer.step()
    g = optimizer.grad_norm
    assert criterion.terms["lambda_ce"] == pytest.approx(10 * g / (g + 1), rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
