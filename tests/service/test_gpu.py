from types import SimpleNamespace

import pynvml
import pytest

from service.gpu import GpuCollector
from service.metrics import Metrics


@pytest.fixture
def two_gpus(monkeypatch):
    lost = set()

    def utilisation(handle):
        if handle in lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(gpu=50 + handle)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilisation)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=10, total=80)
    )
    return lost


def scrape():
    return Metrics(collectors=[GpuCollector()]).render()[0].decode()


def test_each_gpu_is_shown(two_gpus):
    text = scrape()
    assert 'fivecrop_gpu_utilisation_ratio{device="0"} 0.5' in text
    assert 'fivecrop_gpu_utilisation_ratio{device="1"} 0.51' in text
    assert 'fivecrop_gpu_memory_used_bytes{device="1"} 10.0' in text
    assert 'fivecrop_gpu_memory_total_bytes{device="1"} 80.0' in text


def test_a_lost_gpu_is_left_out_and_the_scrape_survives(two_gpus):
    collector = GpuCollector()
    two_gpus.add(0)
    text = Metrics(collectors=[collector]).render()[0].decode()
    assert 'device="0"' not in text
    assert 'device="1"' in text


def test_without_a_driver_there_are_no_gpu_metrics(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert "fivecrop_gpu" not in scrape()
