"""The OFRecord data loader: a module with reader and decoders for a job's graph."""

from engine import native
from engine.oneflow_loader import flow, nn
from ranks.ranks import rank
from records import checks
from system.errors import UserError

# Shuffling draws from a buffer of this many records.
_SHUFFLE_BUFFER = 1024

_DTYPES = {"int32": flow.int32, "float32": flow.float32}


class OFRecordLoader(nn.Module):
    """Reads a data set endlessly, one global batch at a time.

    `data_set`: a checks.DataSet. `placement`: receives batches of `batch_size` sequences, split over its ranks; each
    rank reads its own parts, or the first rank reads for all. Shuffling uses a buffer of 1,024 records and reorders the
    parts after each epoch. The native reader yields each record once per epoch, and native.reader_state returns its
    position. Raises UserError at an invalid record if neither the native reader nor an earlier check covers them.
    """

    def __init__(self, data_set, batch_size, placement, shuffle, seed):
        super().__init__()
        paths = data_set.paths
        prefix = checks.part_name_prefix(paths[0].name)
        self._placement = placement
        self._sbp = _split_over(placement.ranks)
        # Either all ranks read, or the first reads for all.
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
                    pass  # Raises at an invalid record.
        self._fields = data_set.fields
        self._checked = 0
        for name, field in data_set.fields.items():
            decoder = nn.OFRecordRawDecoder(name, shape=(field.length,), dtype=_DTYPES[field.dtype.name])
            self.add_module(f"decode_{name}", decoder)

    def forward(self):
        """Returns the next batch: name -> [B, length] tensor."""
        batch = self.reader()
        decoders = {name: getattr(self, f"decode_{name}") for name in self._fields}
        return {
            name: decoder(batch).to_global(placement=self._placement, sbp=self._sbp)
            for name, decoder in decoders.items()
        }

    def check_batch(self):
        """Raises UserError, naming the record, if the next batch could not be read.

        Call it once for each batch, after its results have arrived and before they are used. Only the native reader
        reports failures, on the rank that reads the record; OneFlow's own reader aborts the process.
        """
        self._checked += 1
        failure = native.reader_failure()
        if failure is None or self._checked <= failure.batches:
            return
        try:
            if failure.path:
                next(checks.read_part(failure.path, self._fields, failure.offset))
        except UserError as error:
            raise UserError(f"{error} (--check_data checks all records before a run)") from None
        raise UserError(failure.text)


def _split_over(ranks):
    """Returns the SBP of a batch on `ranks`: split, but broadcast on one rank, as OneFlow cannot split a batch of 1."""
    return flow.sbp.split(0) if len(ranks) > 1 else flow.sbp.broadcast
