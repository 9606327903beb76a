from sbce_hf.config import CrfConfig
from sbce_hf.labels.variants import variants


def test_the_last_store_is_after_the_crf():
    assert variants("paper", None) == ("paper",)
    assert variants("paper", CrfConfig()) == ("paper", "paper_crf")
    assert variants("irn", CrfConfig(), "labels") == ("labels/irn", "labels/irn_crf")
