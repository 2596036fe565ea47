"""What a card says of its base model without asking the Hub."""

import pytest

from seal_hf.hub.model_card import AdapterCard, with_base_license
from seal_hf.models.embedded import EMBEDDED_MODELS


@pytest.mark.parametrize("model", EMBEDDED_MODELS.values(), ids=EMBEDDED_MODELS)
def test_licence_of_an_embedded_model_is_known(hub, model):
    assert with_base_license(AdapterCard(), model.model_id).license == model.license == "apache-2.0"
    assert with_base_license(AdapterCard(license="mit"), model.model_id).license == "mit"
    assert hub.log == []


def test_licence_of_another_model_is_asked_for(hub):
    assert with_base_license(AdapterCard(), "someone/unknown").license is None
    assert [record.path for record in hub.log] == ["/api/models/someone/unknown"]
