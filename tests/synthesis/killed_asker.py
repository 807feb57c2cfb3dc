"""What the kill tests kill: asks `count` questions through a proxy. python killed_asker.py URL FOLDER COUNT"""

import sys

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.requests import Request, Sampling
from mmkd.synthesis.store import Store

url, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
section = EndpointSection(url=url, model="tiny", concurrency=6, timeout=60, retry_seconds=60)
questions = (
    Request(f"q{n}", (Turn("user", f"What {n}?"),), sampling=Sampling(max_tokens=6), may_be_cut=True)
    for n in range(count)
)
with Asker(Endpoint(section), Store(folder)) as asker:
    print("ready", flush=True)
    for _answer in asker.answer(questions):
        pass
print("finished", flush=True)
