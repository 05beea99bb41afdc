"""Two ranks on a host that seems to have one GPU: which backend does colossalai take? `few_gpus.py`."""

import torch
from colossalai.accelerator import api
from handson import repairs, worker
from handson.repairs import booster_cpu

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
api.auto_set_accelerator()

names = repairs.apply(booster_cpu)
import colossalai  # noqa: E402 - the scripts of the tutorial import it after the repairs, too

colossalai.launch_from_torch(backend=worker.backend(), verbose=False)
worker.record("backend", name=torch.distributed.get_backend(), repairs=names)
