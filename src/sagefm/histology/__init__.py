"""Everything that reads the image: patches, encoders, expression from histology, pretraining, plots."""
