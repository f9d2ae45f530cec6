"""A graph that returns the batches of a job's loader."""

from engine.oneflow_loader import flow
from records.loader import OFRecordLoader


class Read(flow.nn.Graph):
    """Returns the loader's batches of 8 records."""

    def __init__(self, data_set, shuffle=True, seed=3):
        super().__init__()
        self.loader = OFRecordLoader(data_set, 8, flow.placement("cpu", [0]), shuffle, seed)

    def build(self):
        return self.loader()["id"]

    def take(self, batches):
        return [self().to_local().numpy().ravel().tolist() for _ in range(batches)]
