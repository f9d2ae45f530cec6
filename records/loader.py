"""The OFRecord data loader: reader and decoders, as a module of a job's graph."""

from engine import native
from engine.oneflow_loader import flow, nn
from ranks.ranks import rank
from records import checks
from system.errors import UserError

# How many records shuffling draws from.
_SHUFFLE_BUFFER = 1024

_DTYPES = {"int32": flow.int32, "float32": flow.float32}


class OFRecordLoader(nn.Module):
    """Reads the parts of a data set without end, a global batch at a time.

    `data_set` is a records.DataSet, `placement` is where the batches of `batch_size` sequences go, split over its
    ranks, which each read parts of their own or get them from the first. Shuffling draws from a buffer of 1,024
    records, and reorders the parts after every epoch. With the native kernels each record comes once an epoch, and
    native.reader_state tells where the reader is. Where nothing checks the records as they are read,
    and nothing has before, the loader does: it raises UserError at one that is not right.
    """

    def __init__(self, data_set, batch_size, placement, shuffle, seed):
        super().__init__()
        paths = data_set.paths
        prefix = checks.part_name_prefix(paths[0].name)
        self._placement = placement
        self._sbp = _split_over(placement.ranks)
        # Where not all ranks read, the first reads for all.
        ranks = placement.ranks[: data_set.readers]
        self.reader = nn.OFRecordReader(
            str(paths[0].parent),
            batch_size=batch_size,
            data_part_num=len(paths),
            part_name_prefix=prefix,
            part_name_suffix_length=len(paths[0].name) - len(prefix),
            random_shuffle=shuffle,
            shuffle_buffer_size=_SHUFFLE_BUFFER,
            shuffle_after_epoch=shuffle,
            random_seed=seed,
            placement=flow.placement("cpu", ranks),
            sbp=_split_over(ranks),
        )
        if rank() < len(ranks):
            buffer_size = _SHUFFLE_BUFFER if shuffle else 1
            are_checked = native.expect_records(paths, data_set.fields, buffer_size, len(ranks), rank())
            if not are_checked and not data_set.is_checked:
                for _ in checks.read_records(data_set):
                    pass  # It raises at one that is not right.
        self._fields = data_set.fields
        self._checked = 0
        for name, field in data_set.fields.items():
            decoder = nn.OFRecordRawDecoder(name, shape=(field.length,), dtype=_DTYPES[field.dtype.name])
            self.add_module(f"decode_{name}", decoder)

    def forward(self):
        """The next batch: name -> [B, length] tensor."""
        batch = self.reader()
        decoders = {name: getattr(self, f"decode_{name}") for name in self._fields}
        return {
            name: decoder(batch).to_global(placement=self._placement, sbp=self._sbp)
            for name, decoder in decoders.items()
        }

    def check_batch(self):
        """Raises UserError, saying which record is at fault, if the next batch to be checked could not be read.

        To be called for each batch in turn, when its results are there and before anything comes of them. Only the
        native kernels tell, and only on the rank that reads the record; OneFlow's own reader aborts the process.
        """
        self._checked += 1
        failure = native.reader_failure()
        if failure is None or self._checked <= failure.batches:
            return
        try:
            if failure.path:
                checks.check_record_at(failure.path, failure.offset, self._fields)
        except UserError as error:
            raise UserError(f"{error} (--check_data checks all records before a run)") from None
        raise UserError(failure.text)


def _split_over(ranks):
    """How a batch lies on `ranks`. One rank holds it whole: OneFlow aborts on a batch of 1 that is called split."""
    return flow.sbp.split(0) if len(ranks) > 1 else flow.sbp.broadcast
