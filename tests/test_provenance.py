import torch

from core.provenance import config_hash, file_hash, git_state, run_provenance, weights_hash


def test_config_hash_is_that_of_the_settings_alone():
    config = {
        "seed_everything": 1,
        "model": {"lr": 0.1, "weights": {"landmark": 2}},
        "data": {"class_path": "Faces", "init_args": {"seed": 1, "sizes": [{"seed": 1, "n": 2}]}},
        "trainer": {"default_root_dir": "a", "max_steps": 5, "logger": None},
    }
    other = {
        "trainer": {"max_steps": 5, "default_root_dir": "b", "callbacks": [1]},
        "model": {"weights": {"landmark": 2}, "lr": 0.1},
        "data": {"init_args": {"sizes": [{"n": 2, "seed": 2}], "seed": 2}, "class_path": "Faces"},
        "seed_everything": 2,
    }
    assert config_hash(config) == config_hash(other)
    assert len(config_hash(config)) == 12
    other["model"]["lr"] = 0.2
    assert config_hash(config) != config_hash(other)


def test_weights_hash_knows_values_names_and_shapes_in_any_order():
    state = {"a": torch.arange(4.0), "b": torch.tensor([True, False]), "c": torch.tensor(3)}
    same = {name: state[name].clone() for name in ("c", "a", "b")}
    assert weights_hash(state) == weights_hash(same)
    transposed = torch.arange(6).reshape(2, 3).mT
    assert weights_hash({"a": transposed}) == weights_hash({"a": transposed.contiguous()})
    changes = ({"a": torch.arange(4.0).reshape(2, 2)}, {"b": ~state["b"]}, {"d": state["c"]})
    hashes = {weights_hash(state | change) for change in changes}
    assert len(hashes | {weights_hash(state)}) == 4


def test_file_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01"  # FIPS 180-4's first example


def test_where_nothing_is_known_it_says_so(tmp_path):
    assert git_state(tmp_path) is None
    found = run_provenance(tmp_path)
    assert found["config_sha256"] is None
    assert found["seed"] is None
    assert found.keys() == {"config_sha256", "seed", "commit", "dirty"}
    (tmp_path / "config.yaml").write_text("seed_everything: 3\nmodel: {lr: 0.1}\n")
    found = run_provenance(tmp_path)
    assert (found["seed"], found["config_sha256"]) == (3, config_hash({"model": {"lr": 0.1}}))
