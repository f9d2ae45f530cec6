# The project's own data set: a vocabulary and 40 pre-training samples, made from dataset/corpus.txt.
#
# The samples are part 0 of three. Parts share no document, so the other two are there to measure a model on text that
# it has not seen: the same command without --parts makes them too.

BUILT_DATASET := output/dataset

.PHONY: dataset dataset-check built-dataset setup

dataset: built-dataset ## Make dataset/vocab.txt and dataset/part-0 anew from dataset/corpus.txt
	cp $(BUILT_DATASET)/* dataset/

dataset-check: built-dataset ## Check that dataset/ is, byte for byte, what its corpus and the tools make
	@for file in $(BUILT_DATASET)/*; do cmp "$$file" "dataset/$${file##*/}" || exit 1; done
	@echo "dataset/ is what dataset/corpus.txt makes"

built-dataset: setup
	rm -rf $(BUILT_DATASET)
	mkdir -p $(BUILT_DATASET)
	$(PYTHON) tools/train_vocab.py \
	  --input_file=dataset/corpus.txt \
	  --vocab_file=$(BUILT_DATASET)/vocab.txt \
	  --vocab_size=1200
	$(PYTHON) tools/create_pretraining_data.py \
	  --input_file=dataset/corpus.txt \
	  --vocab_file=$(BUILT_DATASET)/vocab.txt \
	  --output_dir=$(BUILT_DATASET) \
	  --max_seq_length=128 \
	  --max_predictions_per_seq=20 \
	  --dupe_factor=1 \
	  --random_seed=20 \
	  --part_num=3 \
	  --parts=0
