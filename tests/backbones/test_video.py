"""Video models of torchvision, pytorchvideo and transformers: attached as they are, verified."""

import pytest

from hdf_modules import attach
from tests.support.verify import verify
from tests.support.video_models import MODELS, x3d

# What pytorchvideo 0.1.5 and the torch.hub code it imports say of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"),
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated"),
]


@pytest.mark.parametrize("name", MODELS)
def test_attached_and_verified(name, device):
    model = MODELS[name]
    stages = verify(model.build(), model.num_frames, model.sample(), device)
    found = tuple(
        (s.name, s.channels, s.layout.pattern, s.num_frames, s.layout.prefix_tokens) for s in stages
    )
    assert found == model.stages


def test_x3d_of_another_size(device):
    """The sample of the adapter is as large as the head's pooling asks for."""
    model = attach(x3d(input_clip_length=13, input_crop_size=160).to(device), 13)
    assert model.blocks[4].dam.num_frames == 13
