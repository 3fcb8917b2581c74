import pickle

import pytest
import torch

from training.checkpoint import (
    load_json,
    load_state,
    load_weights,
    save_json,
    save_state,
    save_weights,
)
from training.errors import TrainingError


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint ran",))


def test_state_and_weights_read_back_and_leave_no_partial_file(tmp_path):
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_state(tmp_path / "state.pt", {"step": 3, "net": {"w": tensor}})
    save_weights(tmp_path / "w.safetensors", {"w": tensor})
    save_json(tmp_path / "facts.json", {"a": [1]})
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert torch.equal(state["net"]["w"], tensor)
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["w"], tensor)
    assert load_json(tmp_path / "facts.json") == {"a": [1]}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "facts.json"
    save_json(path, {"a": 1})
    with pytest.raises(TypeError):
        save_json(path, {"a": object()})
    assert load_json(path) == {"a": 1}


def test_code_in_a_checkpoint_is_refused_not_run(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"net": Evil()}, path)
    with pytest.raises(TrainingError, match=r"state\.pt: no checkpoint"):
        load_state(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TrainingError, match=r"state\.pt: no checkpoint"):
        load_state(path)


@pytest.mark.parametrize("load", [load_state, load_weights, load_json])
def test_missing_and_damaged_files_are_one_line_each(tmp_path, load):
    path = tmp_path / "file"
    with pytest.raises(TrainingError, match=r"file: no such"):
        load(path)
    path.write_bytes(b"\x00\x01 damaged")
    with pytest.raises(TrainingError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
