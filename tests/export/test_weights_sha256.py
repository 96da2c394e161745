import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.export.weights import weights_sha256


def test_same_weights_same_digest(make_encoder):
    first, second = make_encoder(), make_encoder()
    assert weights_sha256(first) == weights_sha256(second)
    assert weights_sha256(second.to(memory_format=torch.channels_last)) == weights_sha256(first)
    assert weights_sha256(second.train()) == weights_sha256(first)


def test_any_difference_changes_the_digest(make_encoder):
    digests = {weights_sha256(make_encoder())}
    changed = make_encoder()
    with torch.no_grad():
        changed.head.bias[-1] = torch.nextafter(changed.head.bias[-1], torch.tensor(9.0))
    digests.add(weights_sha256(changed))
    digests.add(weights_sha256(make_encoder().half()))
    digests.add(weights_sha256(make_encoder().bfloat16()))
    digests.add(weights_sha256(torch.nn.ModuleDict({"inner": make_encoder()})))
    reshaped = make_encoder()
    reshaped.head.weight = torch.nn.Parameter(reshaped.head.weight.detach().reshape(8, 5))
    digests.add(weights_sha256(reshaped))
    assert len(digests) == 6


def test_scalars_and_empty_tensors_count():
    module = torch.nn.Module()
    module.register_buffer("step", torch.tensor(3))
    module.register_buffer("none", torch.empty(0, 4))
    before = weights_sha256(module)
    module.step += 1
    assert weights_sha256(module) != before


def test_state_that_is_no_tensor_is_refused():
    class Odd(torch.nn.Module):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(UserError, match="Odd: _extra_state"):
        weights_sha256(Odd())
