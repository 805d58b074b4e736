"""Reading what runs have left: tables, figures, exports; neither MPI nor a GPU is needed."""
