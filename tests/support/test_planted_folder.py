"""The folder with a known answer loads like any model, and detection finds the answer."""

import json

import pytest
from planted.folder import DIMS, LAYERS, MAGNITUDE, ME_LAYER, write

from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.detection.detect import detect
from wemask.errors import RunFolderError


def test_the_truth_is_found_again(tmp_path):
    folder = tmp_path / "planted"
    truth = write(folder)
    assert json.loads((folder / "planted.json").read_text()) == json.loads(json.dumps(truth))
    tokenizer = load_tokenizer(str(folder))
    report = detect(load_model(str(folder)), tokenizer)
    assert report.layer == truth["layer"] == ME_LAYER
    assert set(report.dims) == set(DIMS)
    assert report.magnitudes == pytest.approx([MAGNITUDE] * len(DIMS), rel=0.1)
    assert {token.token_id for token in report.tokens} == {tokenizer.bos_token_id}
    assert truth["sinks"]["layers"] == tuple(range(ME_LAYER + 1, LAYERS))
    with pytest.raises(RunFolderError, match="not empty"):
        write(folder)
