"""What split_data.py, train.py and evaluate.py share: one subject a file."""
